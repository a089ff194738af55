#!/usr/bin/env bash
# From a folder of 50 pictures and a CSV (photos/) to an answer of the trained model. Nothing else is typed.
set -euo pipefail
basic-lite data photos --recipe demo_photos
basic-lite train photos.yaml
basic-lite chat runs/photos photos/p00.png "describe the image." > answer.txt
