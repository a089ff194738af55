"""What is chosen by the scores of the refinement curve."""

from __future__ import annotations

import pytest

from basic_lite.supervision.calibration import measured_weights


def test_layer_weights_are_the_gains_above_v() -> None:
    assert measured_weights([0.1, -0.2, 0.3]) == pytest.approx([0.25, 0, 0.75])
    assert measured_weights([-0.1, 0.0]) is None
