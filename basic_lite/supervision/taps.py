"""Taps: what one forward of the model leaves behind for the losses, gathered while it streams by.

v is taken where the projector hands it over, v̂ is summed up layer by layer, attention is reduced to column
sums. Neither hidden states nor attention maps are kept, so ``output_hidden_states`` and ``output_attentions``
are never needed. The taps close when the LLM's forward returns: under gradient checkpointing the layers and
their attention run again in the backward, and must find them closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from basic_lite.model.parts import Parts
from basic_lite.supervision.attention import check_options, watch_attention
from basic_lite.supervision.layout import Layout


@dataclass
class Capture:
    """What a forward left behind. Empty for a batch without images, and before the forward has run."""

    layout: Layout
    v: Tensor | None = None  # [M, D] float32, with its graph: initial visual embeddings
    target: Tensor | None = None  # [M, D] float32, v̂; with a graph only when it isn't detached
    mass: Tensor | None = None  # [B, T] float32, attention of text to visual tokens, summed over text and layers
    direction: Any = None  # DAS's pass over layer K, where the target is detached
    attended: int = 0  # layers that mass is summed over
    closed: bool = False
    _projected: list[Tensor] = field(default_factory=list, repr=False)
    _residuals: list[Tensor] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class TapPlan:
    """What to tap, fixed for a whole run."""

    parts: Parts
    operations: ModuleType
    weights: list[float]  # w_h, h = 1..K
    detach: bool
    final_norm: bool
    attention: bool
    direction: Literal["cosine", "mse"] | None  # None: no DAS

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder layers 1..K."""
        return list(self.parts.layers[: len(self.weights)])


@contextmanager
def open_taps(plan: TapPlan, layout: Layout, *, embeddings: bool) -> Iterator[Capture]:
    """A context around one forward; what it yields is filled when the LLM's forward has returned.

    Args:
        embeddings: take v and v̂ (else only the attention mass).

    Raises:
        RuntimeError: the forward ran, but not through the parts that are tapped.
    """
    capture = Capture(layout)
    if layout.positions.numel() == 0:
        yield capture
        return
    with ExitStack() as outer, ExitStack() as inner:
        if embeddings:
            inner.enter_context(_hooked(plan.parts.projector, lambda out: _keep_v(capture, out)))
            for h, (weight, layer) in enumerate(zip(plan.weights, plan.layers, strict=True), start=1):
                last = h == len(plan.weights)
                inner.enter_context(
                    _hooked(layer, lambda out, w=weight, is_last=last: _keep_layer(plan, capture, out, w, is_last))
                )
        if plan.attention:

            def watcher(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
                _keep_mass(plan, capture, module, query, key, options)

            inner.enter_context(watch_attention(plan.parts.language_model, plan.layers, watcher))

        def close(out: Any) -> None:
            if not capture.closed:
                inner.close()
                _finish(plan, capture, embeddings)

        outer.enter_context(_hooked(plan.parts.language_model, close))
        yield capture


@contextmanager
def _hooked(module: nn.Module, take: Any) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _args, out: take(out))
    try:
        yield
    finally:
        handle.remove()


def _keep_v(capture: Capture, out: Tensor) -> None:
    capture._projected.append(out.reshape(-1, out.shape[-1]))


def _keep_layer(plan: TapPlan, capture: Capture, out: Any, weight: float, last: bool) -> None:
    hidden = out[0] if isinstance(out, tuple) else out  # [B, T, D]
    if not plan.detach:
        # Only a reference: the gather waits until the LLM is done, outside of any region that checkpointing
        # recomputes.
        capture._residuals.append(hidden)
        return
    if last and plan.direction is not None:
        v = _pack_v(capture)  # with its graph
        with torch.no_grad():
            hidden, positions = _rows(plan, capture.layout, hidden)
            capture.direction = plan.operations.capture_and_direction_loss(
                capture.target, hidden, positions, weight, v, plan.direction
            )
            capture.target = capture.direction.target
        return
    with torch.no_grad():
        capture.target = _add_layer(plan, capture.layout, capture.target, hidden, weight)


def _rows(plan: TapPlan, layout: Layout, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Where a layer's visual rows are read from: [B, T, D] and positions, normed first where the recipe says so."""
    if not plan.final_norm:
        return hidden, layout.positions
    rows = plan.parts.norm(hidden.flatten(0, 1).index_select(0, layout.positions))[None]  # [1, M, D]
    return rows, torch.arange(layout.positions.numel(), device=layout.positions.device)


def _add_layer(plan: TapPlan, layout: Layout, target: Tensor | None, hidden: Tensor, weight: float) -> Tensor:
    hidden, positions = _rows(plan, layout, hidden)
    acc: Tensor = plan.operations.capture_layer(target, hidden, positions, weight)
    return acc


def _pack_v(capture: Capture) -> Tensor:
    """v [M, D] of all the projector's calls, in float32, once."""
    if capture.v is None:
        expected = capture.layout.positions.numel()
        given = sum(rows.shape[0] for rows in capture._projected)
        if given != expected:
            raise RuntimeError(f"the projector gave {given} visual tokens for {expected} image placeholders")
        v = torch.cat(capture._projected) if len(capture._projected) > 1 else capture._projected[0]
        capture.v = v.to(torch.promote_types(v.dtype, torch.float32))
    return capture.v


def _keep_mass(
    plan: TapPlan, capture: Capture, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]
) -> None:
    check_options(module, options)
    layout = capture.layout
    if query.shape[2] != layout.valid.shape[1] or key.shape[2] != layout.valid.shape[1]:
        raise RuntimeError(
            f"the taps saw {query.shape[2]} queries and {key.shape[2]} keys for a batch of "
            f"{layout.valid.shape[1]} tokens: they watch whole sequences, not generation with a cache"
        )
    scaling = options.get("scaling")
    with torch.no_grad():
        mass = plan.operations.attention_mass(
            query,
            key,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            text_queries=layout.text,
            visual=layout.visual,
            valid=layout.valid,
            sliding_window=options.get("sliding_window"),
            softcap=options.get("softcap"),
            longest=layout.longest_text,
        )
        capture.mass = mass if capture.mass is None else capture.mass.add_(mass)
    capture.attended += 1


def _finish(plan: TapPlan, capture: Capture, embeddings: bool) -> None:
    count = len(plan.weights)
    if plan.attention and capture.attended != count:
        raise RuntimeError(
            f"{capture.attended} attention calls were seen in {count} layers: "
            f"{type(plan.parts.language_model).__name__} doesn't call transformers' AttentionInterface"
        )
    if embeddings:
        _pack_v(capture)
        for weight, hidden in zip(plan.weights, capture._residuals, strict=False):
            capture.target = _add_layer(plan, capture.layout, capture.target, hidden, weight)
        capture._projected.clear()
        capture._residuals.clear()
    capture.closed = True
