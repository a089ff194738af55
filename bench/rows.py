"""What the bench measures: cases, who takes part, what came out, and bounds on memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite.sizes import MIB
from basic_lite_kernels.operations import EAGER, Operations, choose
from bench.measure import Timing, draw

NAIVE = "naive eager"
# Text tokens around the image of a sample.
TEXT = 64
# How much ours may err beyond naive code of the same types, relative. A bf16 q − p costs 0.15 %.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
# A loss, or None where it can't be compared (no row weights), and a gradient or a result.
Found = tuple[Tensor | None, Tensor]


@dataclass(frozen=True)
class Case:
    """One operation on one shape, and what is counted of it.

    Args:
        operation: its name.
        shape: label, in the symbols of the bench file.
        images: images in the batch, the axis of the plot.
        elements: the number that peak memory is divided by; ``unit`` names it ("M·D").
        moved_bytes, flops: the least that any implementation moves and multiplies; the slower of the two is the floor.
        tolerance: how much ours may err beyond naive eager code of the same types, relative.
    """

    operation: str
    shape: str
    images: int
    elements: float
    unit: str
    moved_bytes: float
    flops: float
    tolerance: float


@dataclass(frozen=True)
class Contender:
    """One implementation to compare. ``work`` does one step and returns what it found.

    Args:
        who: NAIVE, "triton", …
        work: one step.
        ours: its error is asserted, and if it raises the bench fails. Others' failures are reported.
    """

    who: str
    work: Callable[[], Found]
    ours: bool = False


def contenders_of(
    device: torch.device,
    naive: Callable[..., Tensor],
    step: Callable[[Callable[..., Tensor]], Found],
    ours: Callable[[Operations], Found],
    *,
    compiles: bool,
) -> list[Contender]:
    """Naive code, ours as ``choose`` has it, ours in eager code, and on a GPU naive code under torch.compile.

    Args:
        device: where the bench runs.
        naive: the operation's naive code.
        step: one step with naive code.
        ours: one step with operations of ours.
        compiles: whether torch.compile takes part on this shape: it compiles each anew.
    """
    chosen = choose("auto", device).operations
    found = [Contender(NAIVE, lambda: step(naive)), Contender(chosen.name, lambda: ours(chosen), ours=True)]
    if chosen is not EAGER:
        found.append(Contender(EAGER.name, lambda: ours(EAGER)))
    if device.type == "cuda" and compiles:
        compiled = torch.compile(naive, dynamic=False)
        found.append(Contender("torch.compile", lambda: step(compiled)))
    return found


def shape_label(images: int, rest: str, dtype: torch.dtype) -> str:
    """A shape's name in tables: "4 images · D 4096, bf16"."""
    return f"{images} image{'s' if images > 1 else ''} · {rest}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}"


def hidden_and_positions(
    images: int, tokens: int, D: int, dtype: torch.dtype, device: torch.device, layers: int = 1
) -> tuple[list[Tensor], Tensor]:
    """What layers put out, each [B, T, D], and where the visual tokens are, [M] int64: an image a sample amid text."""
    visual = torch.zeros(images, tokens + TEXT, dtype=torch.bool, device=device)
    visual[:, TEXT // 2 : TEXT // 2 + tokens] = True
    hiddens = [draw(*visual.shape, D, device=device, dtype=dtype, seed=h) for h in range(layers)]
    return hiddens, visual.flatten().nonzero().squeeze(1)


def loss_and_gradient(loss_of: Callable[[], Tensor], v: Tensor) -> Found:
    """Loss and gradient of one step. The caller owns the gradient: the next step frees nothing."""
    loss = loss_of()
    (gradient,) = torch.autograd.grad(loss, v)
    return loss.detach(), gradient


def exact_by_rows(loss_of: Callable[[Tensor, Tensor], Tensor], v: Tensor) -> Found:
    """Loss and gradient in float64, 128 rows at a time; ``loss_of``: that of some rows, by their numbers and v."""
    loss, gradients = torch.zeros((), dtype=torch.float64, device=v.device), []
    for rows in torch.arange(len(v), device=v.device).split(128):
        part = v.detach()[rows].double().requires_grad_()
        of_rows = loss_of(rows, part)
        gradients += torch.autograd.grad(of_rows, part)
        loss += of_rows.detach()
    return loss, torch.cat(gradients)


@dataclass
class Row:
    """One contender on one case. No time where it could not run; ``note`` says why."""

    operation: str
    shape: str
    images: int
    who: str
    unit: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    bytes_per_element: float | None = None
    time_over_naive: float | None = None
    peak_over_naive: float | None = None
    floor: str = ""
    floor_ms: float | None = None
    percent_of_floor: float | None = None
    moved_bytes: float = 0.0
    flops: float = 0.0
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class StepRow(Timing):
    """A whole training step done one way: BASIC off, on, or the naive way.

    ``…_over_off``: against the same round's step with BASIC off; median, lowest and highest of the rounds. ``…_error``:
    on's against the naive way's. ``parts_ms``: where the time goes, medians.
    """

    shape: str
    way: str
    time_over_off: float
    lowest_over_off: float
    highest_over_off: float
    peak_bytes: int
    adds_bytes: int
    loss_error: float | None
    gradient_error: float | None
    parts_ms: dict[str, float]
    flops: dict[str, float]
    basic_share_of_flops: float
    basic_share_of_flops_in_7b: float


@dataclass(frozen=True)
class Gate:
    """A bound on memory.

    ``strict`` is the goal's figure. ``allowed`` is what is asserted: the same, or with the scratch that the
    implementation states.
    """

    name: str
    who: str
    measured_bytes: float
    strict_bytes: float
    allowed_bytes: float
    per: float  # elements of the unit
    unit: str
    allowance: str  # what allowed has beyond strict

    @property
    def held(self) -> bool:
        return self.measured_bytes <= self.allowed_bytes

    @property
    def held_strictly(self) -> bool:
        return self.measured_bytes <= self.strict_bytes

    def sentence(self) -> str:
        figures = [value / self.per for value in (self.measured_bytes, self.strict_bytes, self.allowed_bytes)]
        measured, strict, allowed = (f"{x:.2f}" if x < 1000 else f"{x:,.0f}" for x in figures)
        text = f"{self.who}, {self.name}: {measured} {self.unit}, strict {strict}: "
        if self.held_strictly:
            return text + "held"
        over = (self.measured_bytes - self.strict_bytes) / MIB
        verdict = "within" if self.held else "BROKEN, beyond"
        return f"{text}{over:.2f} MiB over, {verdict} the {allowed} with its {self.allowance}"
