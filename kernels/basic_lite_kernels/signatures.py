"""The operations of BASIC as types: what each one takes and returns, whoever computes it, and what it computes in.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · H_kv key heads · d head size · D hidden
size · V vocabulary rows. ``naive`` says what each operation computes.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["cosine", "mse"]


class KernelUnavailable(RuntimeError):
    """The Triton kernels were asked for by name and can't run here, or not on these tensors."""


def compute_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """What sums of the two are in: float32, or float64 where one is float64."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


@dataclass(frozen=True)
class RowScaling:
    """The sizes of a layer's rows, and what brings them to one size before they are weighed."""

    norm: Tensor  # [M] float32, ‖row‖ over all dimensions
    factor: Tensor  # [M] float32, 1 / root mean square over the dimensions that are kept; 0 for a zero row
    massive: Tensor | None  # [D] bool, the dimensions that are left out; None: none


class MeasureRows(Protocol):
    def __call__(self, hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
        """Measure the rows ``positions`` [M] of a layer's output [B, T, D]. ``massive`` [D] bool: left out of factors.

        Both results have a graph if grad mode is on and ``hidden`` has one.
        """


class TargetStream(Protocol):
    """v̂ of one forward, added up layer by layer, and DAS against it. A new one for each forward."""

    @property
    def target(self) -> Tensor | None:
        """v̂ so far, [M, D] float32; None before the first layer."""

    def add(self, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None = None) -> None:
        """Add ``weight`` times the rows ``positions`` [M] of a layer's output [B, T, D], flattened to B·T rows.

        With ``scaling`` the rows' massive dimensions count as 0 and the rest is multiplied by their factors. v̂ gets a
        graph if grad mode is on and ``hidden`` has one (a target that is not detached).
        """

    def finish(
        self, hidden: Tensor, positions: Tensor, weight: float, v: Tensor, scaling: RowScaling | None = None
    ) -> None:
        """Add the last layer, and keep v [M, D] for ``loss``. The graph of v is kept in every grad mode."""

    def loss(self, weights: Tensor) -> Tensor:
        """DAS of the finished v̂: a scalar with a graph to v. ``weights`` are a_i, [M]."""


class MakeTargetStream(Protocol):
    def __call__(self, kind: Kind | None) -> TargetStream:
        """``kind``: the distance; None computes v̂ without a loss."""


class VocabKL(Protocol):
    def __call__(
        self,
        v: Tensor,
        target: Tensor,
        table: Tensor,
        weights: Tensor,
        *,
        scale: float = 1.0,
        excluded: Tensor | None = None,
        chunk_rows: int | None = None,
    ) -> Tensor:
        """SDS: a scalar. v and v̂ [M, D], E [V, D], a_i [M], ``excluded`` [V] bool."""


@dataclass(frozen=True)
class MassTokens:
    """The tokens that attention mass is about; the same in every layer, so they are listed once for all.

    A list has a sample's positions in their order, and −1 behind the last.
    """

    valid: Tensor  # [B, T] bool, not padding
    rows: Tensor  # [B, R] int32, text queries that count; none of a sample without a visual token
    columns: Tensor  # [B, C] int32, visual tokens

    @classmethod
    def of(cls, text_queries: Tensor, visual: Tensor, valid: Tensor) -> "MassTokens":
        """From masks, each [B, T] bool; best on the host, since the lengths of lists on a GPU are waited for.

        Raises:
            ValueError: one isn't bool, or has another shape.
        """
        if any(mask.dtype != torch.bool or mask.shape != valid.shape for mask in (text_queries, visual, valid)):
            raise ValueError(f"text_queries, visual and valid must be bool, each {list(valid.shape)}")
        visual = visual & valid
        return cls(valid, listed(text_queries & valid & visual.any(dim=1, keepdim=True)), listed(visual))

    def samples(self, which: slice) -> "MassTokens":
        """Those of some samples."""
        return MassTokens(self.valid[which], self.rows[which], self.columns[which])


def listed(mask: Tensor) -> Tensor:
    """Where a mask [B, T] is true, as ``MassTokens`` lists it, [B, most] int32."""
    most = int(mask.sum(dim=1).max()) if mask.numel() else 0
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :most]
    return order.masked_fill(~mask.gather(1, order), -1).to(torch.int32)


class AttentionMass(Protocol):
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        *,
        scaling: float,
        tokens: MassTokens,
        sliding_window: int | None = None,
        softcap: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attention that visual tokens get, [B, T]. query [B, H, T, d], key [B, H_kv, T, d].

        ``out`` [B, T] float32: it is added to that, which is returned; None: to a new one.
        """


@dataclass(frozen=True)
class Operations:
    """Who computes BASIC's operations."""

    name: str  # as the recipe's key ``kernels`` has it
    target_stream: MakeTargetStream
    row_scaling: MeasureRows
    vocab_kl: VocabKL
    attention_mass: AttentionMass
