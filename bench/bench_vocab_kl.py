"""``vocab_kl`` (SDS) beside naive full logits; on a GPU also autocast, torch.compile, Liger, flash-linear-attention.

Symbols: M packed visual tokens · D hidden size · V vocabulary rows · R rows in flight. One step is forward + backward.
Counted: three products, 6·M·D·V FLOPs; bytes moved are not the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from basic_lite_kernels import naive
from basic_lite_kernels.operations import EAGER, Operations, choose
from bench import measure
from bench.report import Report
from bench.rows import (
    TOLERANCE,
    Case,
    Contender,
    Found,
    Gate,
    contenders_of,
    exact_by_rows,
    loss_and_gradient,
    shape_label,
)


@dataclass(frozen=True)
class Shape:
    images: int
    tokens: int  # of an image
    D: int
    V: int
    dtype: torch.dtype  # of the table; v and v̂ are float32
    compiles: bool = False  # torch.compile takes part: it compiles each shape anew

    @property
    def M(self) -> int:
        return self.images * self.tokens

    def __str__(self) -> str:
        return shape_label(self.images, f"{self.tokens} tokens, D {self.D}, V {self.V}", self.dtype)


# A CPU does an eighth of each image: at full size one product takes a second or more.
SHAPES = {
    "tiny": [Shape(n, 12, 64, 500, torch.float32) for n in (1, 2)],
    "cpu": [Shape(n, 72, 4096, 32000, torch.float32) for n in (1, 2, 4)],
    "gpu": [
        *(Shape(n, 576, 4096, 32000, torch.bfloat16, compiles=n == 4) for n in (1, 4, 8)),
        *(Shape(n, 576, 3584, 152064, torch.bfloat16) for n in (1, 4)),
    ],
}

# Rows in flight that a card measures beside what the kernel chooses.
ROWS = (288, 576, 1152)


@dataclass(frozen=True)
class Inputs:
    """v and v̂ hold values that bf16 has too, so that no contender is charged for rounding its inputs."""

    v: Tensor  # [M, D] float32, a leaf
    target: Tensor  # [M, D] float32
    table: Tensor  # [V, D]
    weights: Tensor  # [M]

    @classmethod
    def make(cls, M: int, D: int, V: int, dtype: torch.dtype, device: torch.device) -> Inputs:
        v = draw(M, D, device=device)
        target = (v + 0.5 * draw(M, D, device=device, seed=1)).bfloat16().float()
        table = draw(V, D, device=device, seed=2).mul_(4 / D**0.5).to(dtype)  # logits of standard deviation 4
        return cls(v.requires_grad_(), target, table, draw(M, device=device, seed=3).abs() / M)


def draw(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return measure.draw(*shape, device=device, seed=seed).bfloat16().float()


def exact(inputs: Inputs) -> Found:
    """Naive code in float64."""
    target, table, weights = inputs.target.double(), inputs.table.double(), inputs.weights.double()
    return exact_by_rows(lambda rows, v: naive.vocab_kl(v, target[rows], table, weights[rows]), inputs.v)


def ours(operations: Operations, inputs: Inputs, rows: int | None = None) -> Found:
    """``rows``: R; None: as the operation chooses."""
    v, target, table, weights = inputs.v, inputs.target, inputs.table, inputs.weights
    return loss_and_gradient(lambda: operations.vocab_kl(v, target, table, weights, chunk_rows=rows), v)


def contenders(shape: Shape, inputs: Inputs, device: torch.device) -> list[Contender]:
    v, target, table, weights = inputs.v, inputs.target, inputs.table, inputs.weights
    wide = table.float()  # not counted against naive code

    def autocast(work: Callable[..., Tensor]) -> Found:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return loss_and_gradient(lambda: work(v, target, table, weights), v)

    found = contenders_of(
        device,
        naive.vocab_kl,
        step=lambda work: loss_and_gradient(lambda: work(v, target, wide, weights), v),
        ours=lambda operations: ours(operations, inputs),
        compiles=shape.compiles,
    )
    if device.type != "cuda":
        return found
    chosen = choose("auto", device).operations
    found += [
        Contender(f"{chosen.name}, R {rows}", partial(ours, chosen, inputs, rows)) for rows in ROWS if rows < shape.M
    ]
    found.append(Contender("naive autocast bf16", lambda: autocast(naive.vocab_kl)))
    if shape.compiles:
        compiled = torch.compile(naive.vocab_kl, dynamic=False)
        found.append(Contender("torch.compile autocast", lambda: autocast(compiled)))
    return found + [Contender(who, partial(work, inputs)) for who, work in OTHERS.items()]


# ---- other people's kernels, nearest to this operation. None has row weights, so a_i goes onto their gradient rows
# here, and their loss (unweighted) is not compared. All take bf16 and make bf16 gradients.


def mean_over_rows(loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> Found:
    """A step with a loss of (student [M, D], teacher [M, D], table) that is a mean over rows."""
    x = inputs.v.detach().to(inputs.table.dtype).requires_grad_()
    loss(x, inputs.target.to(inputs.table.dtype), inputs.table).backward()
    assert x.grad is not None
    return None, x.grad.float() * (inputs.weights[:, None] * x.shape[0])


def liger_kl(inputs: Inputs) -> Found:
    """Takes the teacher as [M, V] probabilities, made here from float32 logits: part of its step."""
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    kl = LigerFusedLinearKLDivLoss(reduction="batchmean")
    return mean_over_rows(lambda x, teacher, table: kl(x, table, (teacher @ table.T).float().softmax(-1)), inputs)


def liger_jsd(inputs: Inputs) -> Found:
    """β 0 is KL(teacher ‖ student)."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    jsd = LigerFusedLinearJSD(jsd_beta=0.0)
    return mean_over_rows(lambda x, teacher, table: jsd(x, table, teacher, table, None), inputs)


def fla_kl(inputs: Inputs) -> Found:
    """bf16 logits. Versions before July 2026 make the table's gradient even where it is frozen."""
    from fla.modules.fused_kl_div import fused_kl_div_loss

    return mean_over_rows(lambda x, teacher, table: fused_kl_div_loss(x, teacher, table, table), inputs)


OTHERS: dict[str, Callable[[Inputs], Found]] = {
    "Liger fused_linear_kl_div": liger_kl,
    "Liger fused_linear_jsd": liger_jsd,
    "fla fused_kl_div": fla_kl,
}


def test_speed_and_memory(shape: Shape, report: Report, device: torch.device) -> None:
    inputs = Inputs.make(shape.M, shape.D, shape.V, shape.dtype, device)
    case = Case(
        operation="vocab_kl",
        shape=str(shape),
        images=shape.images,
        elements=shape.M * shape.V,
        unit="M·V",
        moved_bytes=0,
        flops=6 * shape.M * shape.D * shape.V,
        tolerance=TOLERANCE[shape.dtype],
    )
    report.compare(case, contenders(shape, inputs, device), exact(inputs))


def test_transient_memory(report: Report, device: torch.device) -> None:
    """10 bytes × R × V beyond the gradient, whatever M is."""
    shape = SHAPES[report.scale][-1]
    R = {"tiny": 8, "cpu": 32, "gpu": 256}[report.scale]
    chosen = choose("auto", device).operations
    transients = []
    for M in (2 * R, 4 * R):
        inputs = Inputs.make(M, shape.D, shape.V, shape.dtype, device)

        def forward(inputs: Inputs = inputs) -> Tensor:
            return chosen.vocab_kl(inputs.v, inputs.target, inputs.table, inputs.weights, chunk_rows=R)

        forward()
        # The gradient is the result, not scratch; 64 bytes a row are weights, factors and each row's KL.
        transients.append(measure.peak_bytes(forward, device) - 4 * M * shape.D - 64 * M)
        assert transients[-1] >= 8 * R * shape.V, (
            "float32 logits of both sides take this much: the measurement is wrong"
        )
        strict = 10 * R * shape.V
        columns = -(-shape.V // 16) * 16  # the kernel's rows start at multiples of 64 bytes
        product = 4 * R * shape.D if shape.D * 4 > 2 * shape.V and chosen is not EAGER else 0
        report.gate(
            Gate(
                f"SDS transient, M {M}, R {R}, V {shape.V}",
                chosen.name,
                transients[-1],
                strict,
                10 * R * columns + product + 4096,
                R * shape.V,
                "bytes per R·V",
                "row padding to 64 bytes + 4 KiB",
            )
        )
    assert transients[1] - transients[0] <= 4096, f"grows with M: {transients}"
