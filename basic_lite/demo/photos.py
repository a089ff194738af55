"""Pictures to try ``basic-lite data`` with: a folder as people have it, of the demo's world."""

import csv
from pathlib import Path

import numpy as np

from basic_lite.demo.world import caption, render, scenes_of
from basic_lite.errors import UserError
from basic_lite.training.files import new_folder

PHOTOS = 50


def write_photos(folder: Path, seed: int = 0) -> None:
    """Write a new folder: 50 pictures, and `captions.csv` with the columns image and caption.

    Raises:
        UserError: there is something in the folder, or it can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--photos: {folder} is there already; name a new folder")
    scenes, _ = scenes_of(seed, PHOTOS, 0)
    noise = np.random.default_rng([seed, 1])
    with new_folder(folder.absolute(), "Make room, or name another folder") as draft:
        rows = [["image", "caption"]]
        for number, scene in enumerate(scenes):
            rows.append([f"p{number:02}.png", caption(scene)])
            render(scene, noise).save(draft / rows[-1][0])
        with (draft / "captions.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
