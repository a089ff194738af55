"""v̂ and the DAS loss in plain PyTorch, lean enough to train with: rows are worked on a few at a time.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size. Sums are float32 whatever the inputs are
(float64 inputs stay float64). Sources are sections of arXiv 2508.06895.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from basic_lite_kernels.signatures import Kind, RowScaling, compute_dtype

# A chunk of rows takes about this much. It is small next to a training step, and enough to keep a GPU busy. Few rows
# take 4 bytes an element at most. Their gradient needs as much later, when this memory is free again.
SCRATCH_BYTES = 8 * 2**20


def capture_layer(
    acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None = None
) -> Tensor:
    """Add one layer's share of the target: ``acc[i] += weight · hidden.view(B·T, D)[positions[i]]``.

    Args:
        acc: [M, D] float32, changed in place; None starts at zero.
        hidden: [B, T, D], the residual stream after a decoder layer, any floating type.
        positions: [M] int64, indices into the flattened B·T.
        weight: w_h of this layer.
        scaling: of these rows: massive dimensions count as 0, the others are multiplied by the row's factor.

    Returns:
        acc, [M, D]. A new tensor with a graph instead where grad mode is on and ``hidden`` has a graph
        (target not detached).

    Peak extra bytes beyond ``acc``: at most SCRATCH_BYTES and 4·M·D. With a graph: 8·M·D; with
    ``scaling`` 12·M·D, of which the graph keeps 4·M·D.
    Source: method section, target embeddings v̂ = Σ_h w_h ṽ_h; streaming is ours.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])  # [B·T, D]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_grad_enabled() and (flat.requires_grad or (acc is not None and acc.requires_grad)):
        rows = flat.index_select(0, positions).to(dtype)
        if scaling is not None:
            rows = rows if scaling.massive is None else rows.masked_fill(scaling.massive, 0)
            rows = rows * scaling.factor.unsqueeze(1)
        return rows * weight if acc is None else torch.add(acc, rows, alpha=weight)
    if acc is None:
        acc = torch.zeros(positions.numel(), flat.shape[1], dtype=dtype, device=hidden.device)
    row_bytes = flat.shape[1] * (flat.element_size() + acc.element_size())  # gathered, and cast to add
    scratch = min(SCRATCH_BYTES, 4 * acc.numel())
    for chunk in row_chunks(positions.numel(), row_bytes, scratch):
        if scaling is None:
            acc[chunk].add_(flat.index_select(0, positions[chunk]), alpha=weight)
        else:
            rows = flat.index_select(0, positions[chunk])
            if scaling.massive is not None:
                rows.masked_fill_(scaling.massive, 0)
            acc[chunk].addcmul_(rows.to(dtype), scaling.factor[chunk].unsqueeze(1), value=weight)
            del rows  # else it is there while the next chunk is gathered
    return acc


def row_chunks(rows: int, row_bytes: int, scratch_bytes: int) -> Iterator[slice]:
    """Chunks of rows that fit the scratch memory; one row at least."""
    step = max(1, scratch_bytes // max(1, row_bytes))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def direction_loss(v: Tensor, target: Tensor, weights: Tensor, kind: Kind = "cosine") -> Tensor:
    """Directional alignment (DAS), summed over rows.

    ``cosine``: Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖² = Σ_i a_i (2 − 2 cos θ_i), with
    ∂/∂v_i = −2 a_i (v̂_i/‖v̂_i‖ − cos θ_i · v_i/‖v_i‖) / ‖v_i‖. A zero vector has no direction: its cosine
    counts as 0 (the term is 2 a_i) and its gradient is 0. ``mse``: Σ_i a_i mean_D (v_i − v̂_i)².

    Args:
        v: [M, D], the initial visual embeddings.
        target: [M, D], v̂; gets a gradient only when it requires one.
        weights: [M], a_i, constants.
        kind: "cosine" or "mse".

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: there is no such kind.

    Peak extra bytes: forward at most SCRATCH_BYTES and 4·M·D; backward 4·M·D, the gradient itself (SCRATCH_BYTES
    more where v or target is no float32); 64·M of row statistics.
    Source: method section, direction alignment supervision; ``mse`` from the ablations.
    """
    if kind not in ("cosine", "mse"):
        raise ValueError(f"direction_loss has no kind {kind!r}; it has 'cosine' and 'mse'")
    return _DirectionLoss.apply(v, target, weights, kind)


class _DirectionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, weights: Tensor, kind: str) -> Tensor:
        dtype = compute_dtype(v, target)
        distance = torch.empty(v.shape[0], dtype=dtype, device=v.device)
        inverse_x, inverse_y = (torch.empty_like(distance) if kind == "cosine" else None for _ in range(2))
        scratch = min(SCRATCH_BYTES, 4 * v.numel())
        for rows in row_chunks(v.shape[0], 20 * v.shape[1], scratch):
            x, y = v[rows].to(dtype), target[rows].to(dtype)
            if inverse_x is None or inverse_y is None:
                distance[rows] = (x - y).square_().mean(dim=1)
            else:
                inverse_x[rows], inverse_y[rows], distance[rows] = _unit_distance(x, y)
        ctx.save_for_backward(v, target, weights, inverse_x, inverse_y, distance)
        ctx.kind = kind
        return (distance.double() * weights.double()).sum().to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, target, weights, inverse_x, inverse_y, distance = ctx.saved_tensors
        a = weights.to(distance.dtype) * grad  # [M]
        if ctx.kind == "mse":
            scale = a * (2 / v.shape[1])
            from_x, from_y = (None, None, scale), (None, None, -scale)
        else:
            # 1 − d²/2 keeps the digits of a cosine near 1 that a dot product loses. With a zero row it is 0, and so is
            # the gradient: 1/norm counts as 0.
            cosine = 1 - distance / 2
            from_x = (-cosine * inverse_x, inverse_y, -2 * a * inverse_x)
            from_y = (inverse_x, -cosine * inverse_y, -2 * a * inverse_y)
        dv = _combined(v, v, target, *from_x) if ctx.needs_input_grad[0] else None
        dtarget = _combined(target, v, target, *from_y) if ctx.needs_input_grad[1] else None
        return dv, dtarget, None, None


def _combined(like: Tensor, x: Tensor, y: Tensor, of_x: Tensor | None, of_y: Tensor | None, scale: Tensor) -> Tensor:
    """scale · (of_x · x + of_y · y) of rows, scale · (x − y) where these are None; [M, D] in the type of ``like``.

    In place in the result where x and y have its type. ``scale`` [M] goes on last: 1/norm of a tiny row times the other
    row's may be beyond float32, unit rows times either are not; and rows that are near keep the digits of x − y.
    """
    out = torch.empty_like(like)
    dtype = scale.dtype
    in_place = x.dtype == y.dtype == dtype
    for rows in row_chunks(len(out), 3 * dtype.itemsize * out.shape[1], SCRATCH_BYTES):
        into = out[rows] if in_place else torch.empty_like(out[rows], dtype=dtype)
        if of_x is None or of_y is None:
            torch.sub(x[rows].to(dtype), y[rows].to(dtype), out=into)
        else:
            torch.mul(y[rows].to(dtype), of_y[rows].unsqueeze(1), out=into)
            into.addcmul_(x[rows].to(dtype), of_x[rows].unsqueeze(1))
        into.mul_(scale[rows].unsqueeze(1))
        if not in_place:
            out[rows] = into
    return out


def _unit_distance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1/norm of the rows of x and y [R, D], 0 for a zero row; squared distance of unit rows, 2 with a zero row; [R].

    A row with NaN or infinity has the distance NaN.
    """
    inverses = []
    for rows in (x, y):
        norm = torch.linalg.vector_norm(rows, dim=1)
        inverses.append(torch.where(norm > 0, 1 / norm, torch.zeros_like(norm)))
    inverse_x, inverse_y = inverses
    difference = (x * inverse_x.unsqueeze(1)).sub_(y * inverse_y.unsqueeze(1))
    distance = difference.square_().sum(dim=1)
    return inverse_x, inverse_y, torch.where((inverse_x > 0) & (inverse_y > 0), distance, distance * 0 + 2)


class EagerTargetStream:
    """v̂ and DAS by ``capture_layer`` and ``direction_loss``; see ``signatures.TargetStream``.

    Args:
        kind: the distance; None: there is no loss.
        capture_layer: computes one layer's share. A rehearsal gives one whose memory it counts.
        direction_loss: computes the loss, likewise.

    Peak extra bytes: v̂ (4·M·D), and in the backward the gradient (4·M·D).
    """

    def __init__(
        self,
        kind: Kind | None,
        *,
        capture_layer: Callable[[Tensor | None, Tensor, Tensor, float, RowScaling | None], Tensor] = capture_layer,
        direction_loss: Callable[[Tensor, Tensor, Tensor, Kind], Tensor] = direction_loss,
    ) -> None:
        self.kind = kind
        self.target: Tensor | None = None
        self._v: Tensor | None = None
        self._capture_layer, self._direction_loss = capture_layer, direction_loss

    def add(self, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None = None) -> None:
        self.target = self._capture_layer(self.target, hidden, positions, weight, scaling)

    def finish(
        self, hidden: Tensor, positions: Tensor, weight: float, v: Tensor, scaling: RowScaling | None = None
    ) -> None:
        self.add(hidden, positions, weight, scaling)
        self._v = v

    def loss(self, weights: Tensor) -> Tensor:
        """See ``TargetStream``.

        Raises:
            RuntimeError: the target isn't finished, or the stream was given no kind.
        """
        if self.kind is None or self.target is None or self._v is None:
            raise RuntimeError("a target stream has a loss once it is finished, and where it was given a kind")
        return self._direction_loss(self._v, self.target, weights, self.kind)
