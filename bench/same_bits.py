"""Whether a kernel gives the same bits every time, while other work makes its programs start in another order.

The interpreter runs programs one after another and can't show a race. Here each operation runs REPEATS times on the
same inputs while a second stream keeps the card busy, and all free memory is filled with NaN before each run, so that a
read of something unwritten shows. The operations promise the same bits on the same card; one different bit is a race.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from basic_lite_kernels.operations import Operations
from bench import bench_attention_mass as mass
from bench import bench_direction_loss as direction
from bench import bench_row_scaling as scaling
from bench import bench_vocab_kl as vocab
from bench.rows import Found

REPEATS = 60
POISON_BYTES = 2**28


def works(operations: Operations, device: torch.device, *, tiny: bool = False) -> dict[str, Callable[[], list[Tensor]]]:
    """Operation and shape → one run of it; each shape has ragged edges."""
    dtype = torch.float32 if tiny else torch.bfloat16
    cases: dict[str, Callable[[], Found]] = {}
    for M, D in ((5, 40), (7, 96)) if tiny else ((575, 4096), (1153, 2560), (77, 12288)):
        hidden = direction.Inputs.make(direction.Shape(1, M, D, 3 if tiny else 8, dtype), device)
        cases[f"direction_loss M {M} D {D}"] = partial(direction.ours, operations, hidden)
        rows_of = scaling.Inputs.make(scaling.Shape(1, M, D, dtype), device)
        cases[f"row_scaling M {M} D {D}"] = partial(scaling.ours, operations, rows_of)
    for M, D, V in ((5, 40, 33),) if tiny else ((575, 4096, 32000), (1153, 96, 33), (130, 3584, 152064)):
        rows = vocab.Inputs.make(M, D, V, dtype, device)
        cases[f"vocab_kl M {M} D {D} V {V}"] = partial(vocab.ours, operations, rows)
    for B, H, H_kv, d in ((2, 4, 2, 16),) if tiny else ((1, 32, 32, 128), (3, 28, 4, 128), (2, 8, 8, 80)):
        image, text = (9, 5) if tiny else (575, 131)
        heads = mass.Inputs.make(mass.Shape(B, image, 3, text, H, H_kv, d, dtype), device)
        cases[f"attention_mass B {B} H {H}:{H_kv} d {d}"] = partial(mass.ours, operations, heads)
    return {name: partial(_tensors, work) for name, work in cases.items()}


def _tensors(work: Callable[[], Found]) -> list[Tensor]:
    return [x for x in work() if x is not None]


def differing_runs(work: Callable[[], list[Tensor]], disturb: Callable[[int], None], repeats: int) -> int:
    """Runs whose bits differ from those of the first; NaN in the first counts as all."""
    first = [x.clone() for x in work()]
    if not all(x.isfinite().all() for x in first):
        return repeats
    different = 0
    for i in range(repeats):
        disturb(i)
        different += not all(torch.equal(x, y) for x, y in zip(work(), first, strict=True))
    return different


class Disturbance:
    """Fills free memory with NaN before each run, and gives another stream work of changing length."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.factors = torch.randn(2, 1024, 1024, device=device)

    def __call__(self, run: int) -> None:
        if self.stream is None:
            return
        poison = torch.full((POISON_BYTES // 4,), float("nan"), device=self.device)
        small = [torch.full((2**16,), float("nan"), device=self.device) for _ in range(64)]
        del poison, small
        with torch.cuda.stream(self.stream):
            for _ in range(run % 7):
                torch.mm(self.factors[0], self.factors[1])
