"""Taps: what one forward of the model leaves behind for the losses, gathered while it passes.

v is taken where the projector hands it over, v̂ is added up layer by layer, attention is reduced to column sums.
Attention maps are never kept. Hidden states are kept only with ``supervision.detach: false``: then the outputs of the K
layers stay until the LLM is done. ``output_hidden_states`` and ``output_attentions`` are never needed. The taps close
when the LLM's forward returns: under gradient checkpointing the layers and their attention run again in the backward,
and must find them closed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from basic_lite.errors import UserError
from basic_lite.model.parts import Parts
from basic_lite.supervision.attention import WatchedAttention, attention_mass
from basic_lite.supervision.guard import Guard
from basic_lite.supervision.layout import Layout
from basic_lite.supervision.target import TargetPlan, visual_rows
from basic_lite_kernels.operations import Kind, Operations, TargetStream
from basic_lite_kernels.signatures import RowScaling


@dataclass
class Capture:
    """What a forward left behind. Empty for a batch without images, and before the forward has run."""

    layout: Layout
    v: Tensor | None = None  # [M, D] float32, with its graph: initial visual embeddings
    stream: TargetStream | None = None  # v̂, and DAS against it
    mass: Tensor | None = None  # [B, T] float32, attention of text to visual tokens, summed over text and layers
    attended: int = 0  # layers that mass is summed over
    norms: list[Tensor] = field(default_factory=list)  # ‖ṽ_h‖ of layers 1..K, [M] float32; empty: sinks are kept
    guard: Guard | None = None  # what v's gradients go through; None: nothing
    closed: bool = False
    _projected: list[Tensor] = field(default_factory=list, repr=False)
    _residuals: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> Tensor | None:
        """v̂, [M, D] float32; with a graph only when it isn't detached."""
        return None if self.stream is None else self.stream.target


@dataclass(frozen=True)
class TapPlan:
    """What to tap. It stays as it is until ``Supervision.use`` makes another one."""

    parts: Parts
    target: TargetPlan
    massive: list[Tensor | None]  # [D] bool of each layer, of 1..K at least
    detach: bool
    target_norm: Literal["none", "final", "layer"]
    drop_sinks: bool
    attention: WatchedAttention | None  # None: attention isn't read
    direction: Kind | None  # None: no DAS
    guard: float | None  # ρ; None: v's gradients are added as they are

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder layers 1..K."""
        return list(self.parts.layers[: len(self.target.layer_weights)])

    def share(
        self, h: int, hidden: Tensor, positions: Tensor, operations: Operations
    ) -> tuple[Tensor, Tensor, float, RowScaling | None]:
        """Layer h's share of v̂ as ``TargetStream.add`` takes it, from its output [B, T, D] and positions [M]."""
        scaling = None
        if self.target_norm == "layer":
            scaling = operations.row_scaling(hidden, positions, self.massive[h - 1])
        return (*visual_rows(hidden, positions, self.norm), self.target.layer_weights[h - 1], scaling)

    def without_massive(self, h: int, rows: Tensor) -> Tensor:
        """Rows [R, D] of layer h's output, massive dimensions set to 0 where they are known."""
        mask = self.massive[h - 1] if h <= len(self.massive) else None
        return rows if mask is None else rows.masked_fill(mask, 0)

    @property
    def norm(self) -> nn.Module | None:
        """What a layer's rows go through before they are added to v̂."""
        return self.parts.norm if self.target_norm == "final" else None


@contextmanager
def open_taps(plan: TapPlan, operations: Operations, layout: Layout, *, embeddings: bool) -> Iterator[Capture]:
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
    taps = _Taps(plan, operations, capture)
    with ExitStack() as outer, ExitStack() as inner:
        if embeddings:
            capture.stream = operations.target_stream(plan.direction)
            inner.enter_context(hooked(plan.parts.projector, taps.keep_v))
            for h, layer in enumerate(plan.layers, start=1):
                if plan.target.adds(h) or plan.drop_sinks:  # for the norms that tell sinks
                    inner.enter_context(hooked(layer, partial(taps.keep_layer, h)))
        if plan.attention is not None:
            inner.enter_context(plan.attention.watching(taps.keep_mass))

        def close(_out: Any) -> None:
            if not capture.closed:
                inner.close()
                taps.finish()

        outer.enter_context(hooked(plan.parts.language_model, close))
        yield capture


def hooked(module: nn.Module, take: Callable[[Any], Tensor | None]) -> RemovableHandle:
    """Let ``take`` see each output of ``module``, the first tensor of a tuple, for as long as the ``with`` lasts.

    A tensor that ``take`` returns takes the output's place.
    """
    return module.register_forward_hook(lambda _module, _args, out: take(out[0] if isinstance(out, tuple) else out))


def entered(module: nn.Module, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Let ``take`` see the first input of each call of ``module``, for as long as the ``with`` lasts."""
    return module.register_forward_pre_hook(lambda _module, args: take(args[0]))


def watch_layers(
    parts: Parts,
    batch: Mapping[str, Tensor],
    take: Callable[[int, Tensor], None],
    take_v: Callable[[Tensor], None] = lambda v: None,
) -> None:
    """Make one forward, and let ``take`` see h and ṽ_h of all tokens, [B, T, D], after each layer h = 1..L.

    Args:
        take_v: sees what v is read from: the projector's output, [..., D], packed as ``Layout`` packs visual tokens;
            with ``parts.layer_inputs`` the first layer's input, [B, T, D].
    """
    with ExitStack() as hooks:
        if parts.layer_inputs:
            hooks.enter_context(entered(parts.layers[0], take_v))
            for h, layer in enumerate(parts.layers[1:], start=1):
                hooks.enter_context(entered(layer, partial(take, h)))
            hooks.enter_context(hooked(parts.layers[-1], partial(take, len(parts.layers))))
        else:
            hooks.enter_context(hooked(parts.projector, take_v))
            for h, layer in enumerate(parts.layers, start=1):
                hooks.enter_context(hooked(layer, partial(take, h)))
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "visual")}
        parts.model.model(**inputs, use_cache=False)  # without the head: no [B, T, V] logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass(frozen=True)
class _Taps:
    """What the hooks of one forward do."""

    plan: TapPlan
    operations: Operations
    capture: Capture

    def keep_v(self, out: Tensor) -> Tensor | None:
        """Keep v. Under the guard the LLM goes on with what is returned: the same values."""
        capture, for_lm = self.capture, None
        if self.plan.guard is not None:
            if capture.guard is not None:
                raise RuntimeError(
                    "the projector was called twice in one forward, and the gradient guard needs all visual tokens of "
                    "a sample at once; set supervision.guard=null"
                )
            capture.guard = Guard(self.plan.guard, capture.layout)
            for_lm, out = capture.guard.split(out)
        capture._projected.append(out.reshape(-1, out.shape[-1]))
        return for_lm

    def keep_layer(self, h: int, hidden: Tensor) -> None:
        if self.plan.detach:
            if h == self.plan.target.last:
                self._pack_v()  # outside of no_grad: v keeps its graph
            with torch.no_grad():
                self._add_layer(h, hidden)
        else:
            # Only a reference: the rows are read when the LLM is done, outside of what checkpointing recomputes.
            self.capture._residuals[h] = hidden

    def _add_layer(self, h: int, hidden: Tensor) -> None:
        """Add layer h's share of v̂, if it has one; the last one finishes it. Keep its norms where sinks are dropped."""
        plan, stream, positions = self.plan, self.capture.stream, self.capture.layout.positions
        assert stream is not None
        rows, where, weight, scaling = plan.share(h, hidden, positions, self.operations)
        if plan.drop_sinks:
            with torch.no_grad():
                sizes = self.operations.row_scaling(hidden, positions) if scaling is None else scaling
            self.capture.norms.append(sizes.norm.detach())
        if h == plan.target.last:
            stream.finish(rows, where, weight, self._pack_v(), scaling)
        elif weight > 0:
            stream.add(rows, where, weight, scaling)

    def _pack_v(self) -> Tensor:
        """Pack v [M, D] of all the projector's calls once, in float32 and with its graph."""
        capture = self.capture
        if capture.v is None:
            expected = capture.layout.positions.numel()
            given = sum(rows.shape[0] for rows in capture._projected)
            if given != expected:
                raise RuntimeError(f"the projector gave {given} visual tokens for {expected} image placeholders")
            v = torch.cat(capture._projected) if len(capture._projected) > 1 else capture._projected[0]
            capture.v = v.to(torch.promote_types(v.dtype, torch.float32))
        return capture.v

    def keep_mass(self, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        capture, layout = self.capture, self.capture.layout
        queries, keys, tokens = query.shape[2], key.shape[2], layout.valid.shape[1]
        if queries != tokens or keys != tokens:
            raise RuntimeError(
                f"the taps saw {queries} queries and {keys} keys for a batch of {tokens} tokens: they watch whole "
                "sequences, not generation with a cache"
            )
        with torch.no_grad():
            capture.mass = attention_mass(module, query, key, options, layout, self.operations, out=capture.mass)
        capture.attended += 1

    def finish(self) -> None:
        """Finish v̂ and check the attention when the LLM's forward is over."""
        plan, capture = self.plan, self.capture
        count = len(plan.target.layer_weights)
        if plan.attention is not None and capture.attended != count:
            raise UserError(
                f"model.llm: {type(plan.parts.language_model).__name__} doesn't compute its attention as other LLMs of "
                f"transformers do ({capture.attended} calls were seen in {count} layers), so what it pays to the "
                "picture can't be read. Choose another LLM, or a fixed number in supervision.token_weights"
            )
        if capture.stream is not None:
            self._pack_v()
            for h, hidden in capture._residuals.items():
                self._add_layer(h, hidden)
            capture._projected.clear()
            capture._residuals.clear()
        capture.closed = True
