"""A kernel gives the same bits every time: on a GPU, and that the check itself sees a change, anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basic_lite_kernels.operations import EAGER, choose
from bench.same_bits import REPEATS, Disturbance, differing_runs, works


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nothing but a GPU runs programs at the same time")
def test_every_run_has_the_same_bits() -> None:
    device = torch.device("cuda")
    disturb = Disturbance(device)
    found = works(choose("triton", device).operations, device)
    differing = {name: differing_runs(work, disturb, REPEATS) for name, work in found.items()}
    assert not any(differing.values()), f"runs of {REPEATS} that differ: {differing}"


def test_a_changing_bit_is_seen() -> None:
    device = torch.device("cpu")
    disturb = Disturbance(device)
    for name, work in works(EAGER, device, tiny=True).items():
        assert differing_runs(work, disturb, 2) == 0, name
    state = torch.zeros(3)

    def racing() -> list[Tensor]:
        state[0] += 1
        return [(state > 2).float()]

    assert differing_runs(racing, disturb, 4) == 3
    assert differing_runs(lambda: [torch.full((2,), float("nan"))], disturb, 4) == 4
