"""``row_scaling`` of one layer (``target_norm: layer``) beside naive eager code; on a GPU beside torch.compile.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size. One step finds the norm and the factor of each
visual token's row. Each element is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite_kernels import naive
from basic_lite_kernels.eager_direction_loss import SCRATCH_BYTES
from basic_lite_kernels.operations import Operations
from basic_lite_kernels.signatures import RowScaling
from bench.report import Report
from bench.rows import Case, Contender, Found, contenders_of, hidden_and_positions, shape_label

MASSIVE = (3, 29)


@dataclass(frozen=True)
class Shape:
    images: int  # one a sample
    tokens: int  # of an image
    D: int
    dtype: torch.dtype
    compiles: bool = False

    @property
    def M(self) -> int:
        return self.images * self.tokens

    def __str__(self) -> str:
        return shape_label(self.images, f"{self.tokens} tokens, D {self.D}", self.dtype)


SHAPES = {
    "tiny": [Shape(n, 12, 64, torch.float32) for n in (1, 2)],
    "cpu": [Shape(n, 576, 4096, torch.float32) for n in (1, 2, 4)],
    "gpu": [Shape(n, 576, 4096, torch.bfloat16, compiles=n == 4) for n in (1, 4, 8)],
}


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor  # [B, T, D]
    positions: Tensor  # [M] int64
    massive: Tensor  # [D] bool

    @classmethod
    def make(cls, shape: Shape, device: torch.device) -> Inputs:
        (hidden,), positions = hidden_and_positions(shape.images, shape.tokens, shape.D, shape.dtype, device)
        massive = torch.zeros(shape.D, dtype=torch.bool, device=device)
        massive[list(MASSIVE)] = True
        return cls(hidden * torch.where(massive, 100, 1).to(shape.dtype), positions, massive)


def found_of(scaling: RowScaling) -> Found:
    """Norms and factors stand where a loss has its value and its gradient: each is checked."""
    return scaling.norm, scaling.factor


@torch.no_grad()
def ours(operations: Operations, inputs: Inputs) -> Found:
    return found_of(operations.row_scaling(inputs.hidden, inputs.positions, inputs.massive))


def contenders(shape: Shape, inputs: Inputs, device: torch.device) -> list[Contender]:
    return contenders_of(
        device,
        naive.row_scaling,
        step=lambda work: found_of(work(inputs.hidden, inputs.positions, inputs.massive)),
        ours=lambda operations: ours(operations, inputs),
        compiles=shape.compiles,
    )


def exact(inputs: Inputs) -> Found:
    """Naive code in float64."""
    return found_of(naive.row_scaling(inputs.hidden.double(), inputs.positions, inputs.massive))


def test_speed_and_memory(shape: Shape, report: Report, device: torch.device) -> None:
    inputs = Inputs.make(shape, device)
    elements = shape.M * shape.D
    case = Case(
        operation="row_scaling",
        shape=str(shape),
        images=shape.images,
        elements=elements,
        unit="M·D",
        moved_bytes=elements * inputs.hidden.element_size(),
        flops=0,
        tolerance=1e-6,
    )
    report.compare(case, contenders(shape, inputs, device), exact(inputs))

    results = 8 * shape.M
    scratch = min(SCRATCH_BYTES, 4 * elements) + 32 * shape.M + 4096
    bounds = {"reference": (scratch, "scratch"), "triton": (results + 1024, "1 KiB")}
    report.gate_rows(case, "norms and factors", results, bounds)
