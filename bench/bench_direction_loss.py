"""``capture_layer`` × K and ``direction_loss`` (DAS) beside naive eager code; on a GPU beside torch.compile.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size · K supervised layers. One step is the capture of
K layers, the loss and its gradient. Counted per M·D, with e bytes a hidden element: layer 1 reads e and writes 4 bytes,
layers 2 to K − 1 read e + 4 and write 4, layer K reads e + 8 and writes 8 (v̂, gradient), and the backward reads and
writes 4 (the gradient, times a_i): 172 bytes at K 16 in bf16.

Here the K captures run back to back, so v̂ may stay in a card's L2 cache, as it never does between the layers of an LLM.
Where it fits, only what must be read once is counted, K·e + 4 bytes: a floor that nothing can beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite_kernels import naive
from basic_lite_kernels.operations import Operations
from bench import measure
from bench.report import Report
from bench.rows import (
    Case,
    Contender,
    Found,
    contenders_of,
    exact_by_rows,
    hidden_and_positions,
    loss_and_gradient,
    shape_label,
)


@dataclass(frozen=True)
class Shape:
    images: int  # one a sample
    tokens: int  # of an image
    D: int
    K: int
    dtype: torch.dtype  # of the hidden states; v is float32
    compiles: bool = False

    @property
    def M(self) -> int:
        return self.images * self.tokens

    def __str__(self) -> str:
        return shape_label(self.images, f"{self.tokens} tokens, D {self.D}, K {self.K}", self.dtype)


def moved_bytes(shape: Shape, cache_bytes: int) -> int:
    """The least that a step moves to and from memory, with a cache of so many bytes."""
    e, elements = shape.dtype.itemsize, shape.M * shape.D
    if (4 + e) * elements <= cache_bytes:  # v̂ and a layer's rows
        return elements * (shape.K * e + 4)
    return elements * ((e + 4) + (shape.K - 2) * (e + 8) + (e + 16) + 8)


SHAPES = {
    "tiny": [Shape(n, 12, 64, 4, torch.float32) for n in (1, 2)],
    "cpu": [Shape(n, 576, 4096, 16, torch.float32) for n in (1, 2, 4)],
    "gpu": [Shape(n, 576, 4096, 16, torch.bfloat16, compiles=n == 4) for n in (1, 4, 8)],
}


@dataclass(frozen=True)
class Inputs:
    hiddens: list[Tensor]  # K of [B, T, D]
    positions: Tensor  # [M] int64
    layer_weights: list[float]  # w_h = h² / Σ h²
    v: Tensor  # [M, D] float32, a leaf
    weights: Tensor  # [M], a_i

    @classmethod
    def make(cls, shape: Shape, device: torch.device) -> Inputs:
        of_images = shape.images, shape.tokens, shape.D, shape.dtype
        hiddens, positions = hidden_and_positions(*of_images, device, layers=shape.K)
        squares = [(h + 1) ** 2 for h in range(shape.K)]
        return cls(
            hiddens,
            positions,
            [square / sum(squares) for square in squares],
            measure.draw(shape.M, shape.D, device=device, seed=100).requires_grad_(),
            measure.draw(shape.M, device=device, seed=101).abs() / shape.M,
        )


def naive_loss(hiddens: list[Tensor], positions: Tensor, layer_weights: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """DAS from all layers at once."""
    with torch.no_grad():
        target = naive.refined_target(hiddens, positions, layer_weights)
    return naive.direction_loss(v, target, weights)


def streamed(operations: Operations, inputs: Inputs) -> Tensor:
    """DAS layer by layer, as the taps do it."""
    stream = operations.target_stream("cosine")
    *before, (last, last_weight) = zip(inputs.hiddens, inputs.layer_weights, strict=True)
    with torch.no_grad():
        for hidden, weight in before:
            stream.add(hidden, inputs.positions, weight)
        stream.finish(last, inputs.positions, last_weight, inputs.v)
    return stream.loss(inputs.weights)


def ours(operations: Operations, inputs: Inputs) -> Found:
    return loss_and_gradient(lambda: streamed(operations, inputs), inputs.v)


def contenders(shape: Shape, inputs: Inputs, device: torch.device) -> list[Contender]:
    given = inputs.hiddens, inputs.positions, torch.tensor(inputs.layer_weights, device=inputs.v.device)
    return contenders_of(
        device,
        naive_loss,
        step=lambda work: loss_and_gradient(lambda: work(*given, inputs.v, inputs.weights), inputs.v),
        ours=lambda operations: ours(operations, inputs),
        compiles=shape.compiles,
    )


def exact(inputs: Inputs) -> Found:
    """Naive code in float64."""
    layer_weights = torch.tensor(inputs.layer_weights, dtype=torch.float64, device=inputs.v.device)

    def loss_of(rows: Tensor, v: Tensor) -> Tensor:
        hiddens = [hidden.flatten(0, 1)[inputs.positions[rows]].double()[None] for hidden in inputs.hiddens]
        return naive_loss(
            hiddens, torch.arange(len(rows), device=v.device), layer_weights, v, inputs.weights[rows].double()
        )

    return exact_by_rows(loss_of, inputs.v)


def test_speed_and_memory(shape: Shape, report: Report, device: torch.device) -> None:
    inputs = Inputs.make(shape, device)
    elements = shape.M * shape.D
    case = Case(
        operation="direction_loss",
        shape=str(shape),
        images=shape.images,
        elements=elements,
        unit="M·D",
        moved_bytes=moved_bytes(shape, measure.cache_bytes(device)),
        flops=0,
        tolerance=1e-5,
    )
    report.compare(case, contenders(shape, inputs, device), exact(inputs))

    # Norms, distances, weights.
    bound = 8 * elements + 64 * shape.M + 4096, "64 bytes a row + 4 KiB"
    report.gate_rows(case, "DAS", 8 * elements, {"reference": bound, "triton": bound})
    for row in report.rows:
        if (row.operation, row.shape) == (case.operation, case.shape) and row.who in ("reference", "triton"):
            assert (row.peak_bytes or 0) >= 8 * elements, "less than v̂ and its gradient: the measurement is wrong"
