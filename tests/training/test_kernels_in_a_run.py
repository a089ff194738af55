"""A whole run with the Triton kernels, and one with the reference: the same losses and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.kernels import DEVICE, kernel_test, run_interpreted
from tests.support.runs import LOUD, WHOLE, assert_same_terms, assert_same_weights, run, write_data

# Rounding of float32 sums in another order. Adam's first steps are sign-like, so that of tiny gradients is magnified;
# the rate is 1e-3, and after three steps a weight has moved by up to 3e-3.
TERMS, WEIGHTS = 1e-4, {"rtol": 0.0, "atol": 1e-4}


@kernel_test
@pytest.mark.parametrize("settings", [{}, {"supervision.direction": "mse"}], ids=["default", "mse"])
def test_a_run_with_kernels_is_a_run_without(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_data(tmp_path, 6, text_only=2)
    changes = {**WHOLE, **LOUD, **settings, "training.max_steps": 3, "training.global_batch": 4}
    changes |= {"training.device": DEVICE.type, "training.micro_batch": 2, "quantization.mode": "none"}
    folders = [run(tmp_path, {**changes, "kernels": one, "name": one}) for one in ("reference", "triton")]
    assert_same_terms(*folders, rel=TERMS)
    assert_same_weights(*(folder / "final" for folder in folders), **WEIGHTS)
    # What the comparison would see: without BASIC the weights are others.
    other = run(tmp_path, {**changes, "kernels": "reference", "name": "off", "supervision.enabled": False})
    with pytest.raises(AssertionError):
        assert_same_weights(folders[0] / "final", other / "final", **WEIGHTS)


@pytest.mark.soak
def test_through_the_interpreter() -> None:
    run_interpreted(__file__)
