"""Run once what only repeats itself (decoder layers, chunks of rows), so that a rehearsal takes seconds.

Under gradient checkpointing a layer leaves its input behind in the forward and its gradients in the backward. It gives
everything else back before the next layer starts. What is left behind grows by the same amount from one layer to the
next, where layers are alike. So the peak is at one end: in the first layer, the last one, or the last one that BASIC
watches. Those run in full. The others only keep and make what they leave behind.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.model.parts import Parts
from basic_lite.rehearsal.ledger import Ledger, fake_like
from basic_lite.supervision import Supervision
from basic_lite_kernels.signatures import MeasureRows, RowScaling


class RepeatedLayer(nn.Module):
    """Replace a decoder layer and leave behind the tensors that it would.

    Args:
        layer: the layer whose parameters get gradients.
        ledger: the ledger that counts the gradients.
        watched: BASIC reads this layer's attention, so the attention function is called with tensors of its shapes.
        casts: the list that keeps autocast's copies of float32 adapters until the model's forward is over; None: there
            are none.
    """

    def __init__(self, layer: nn.Module, ledger: Ledger, *, watched: bool, casts: list[Tensor] | None) -> None:
        super().__init__()
        self.layer = layer
        self.ledger = ledger
        self.watched = watched
        self.casts = casts

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        if self.watched:
            self._attend(hidden_states)
        if self.casts is not None:
            for p in self.layer.parameters():
                if p.requires_grad and p.dtype == torch.float32:
                    self.casts.append(p.detach().to(torch.bfloat16))
        out: Tensor = _Repeated.apply(hidden_states, self)
        return out

    @torch.no_grad()
    def _attend(self, hidden: Tensor) -> None:
        attention = next(m for m in self.layer.modules() if hasattr(m, "layer_idx") and hasattr(m, "head_dim"))
        config = attention.config
        B, T = hidden.shape[:2]
        query = hidden.new_empty(B, config.num_attention_heads, T, attention.head_dim)
        key = hidden.new_empty(B, config.num_key_value_heads, T, attention.head_dim)
        function = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        function(attention, query, key, key, None, scaling=attention.scaling)

    def make_gradients(self) -> None:
        """Leave the gradients that the layer's backward would leave."""
        for parameter in self.layer.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = fake_like(self.ledger, parameter, "gradients")


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: RepeatedLayer) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.layer = layer
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.layer.make_gradients()
        return torch.empty_like(grad), None


def repeat_layers(parts: Parts, ledger: Ledger, supervision: Supervision | None, casts: list[Tensor] | None) -> None:
    """Replace layers that are alike. Of a kind, the first, the last and the last supervised layer run in full.

    ``casts`` as in ``RepeatedLayer``.
    """
    supervised = 0 if supervision is None else supervision.layers
    watched = supervision is not None and supervision.reads_attention
    types = getattr(parts.language_model.config, "layer_types", None) or []
    kinds: dict[Any, list[int]] = {}
    for index, layer in enumerate(parts.layers):
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
        kinds.setdefault((shapes, types[index] if index < len(types) else None), []).append(index)
    full = {0, len(parts.layers) - 1, max(supervised - 1, 0)}
    for members in kinds.values():
        within = [i for i in members if i < supervised]
        full |= {members[0], members[-1], *within[-1:]}
    for index, layer in enumerate(parts.layers):
        if index not in full:
            parts.layers[index] = RepeatedLayer(layer, ledger, watched=watched and index < supervised, casts=casts)


def last_in_full(attention_mass: Callable[..., Tensor], layers: int, chunk: int) -> Callable[..., Tensor]:
    """Compute attention mass for the last supervised layer only. By then most other memory is in use.

    Every layer's call takes and gives back the same. Samples are worked on a few at a time, so only as many are
    computed as make a round of ``chunk`` elements.
    """
    calls = 0

    def counted(query: Tensor, key: Tensor, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        B, _, T, d = query.shape
        if calls % layers == 0:
            round_of = slice(1 + chunk // (key.shape[1] * T * d))
            for name in ("text_queries", "visual", "valid"):
                options[name] = options[name][round_of]
            attention_mass(query[round_of], key[round_of], **options)
        return query.new_zeros(B, T, dtype=torch.promote_types(query.dtype, torch.float32))

    return counted


# Several chunks of every operation of BASIC that goes through visual tokens in chunks.
FEW_ROWS = 512


def few_rows(loss: Callable[..., Tensor], *, gradient_in_forward: bool) -> Callable[..., Tensor]:
    """Compute DAS or SDS on a few rows. Every chunk needs the same scratch; the gradient has all rows.

    SDS makes its gradient in the forward and keeps that; DAS keeps v and v̂.
    """

    def shortened(v: Tensor, target: Tensor, *rest: Any, **options: Any) -> Tensor:
        if v.shape[0] <= FEW_ROWS or target.requires_grad:
            return loss(v, target, *rest, **options)

        def run() -> Tensor:
            cut = [x[:FEW_ROWS] if isinstance(x, Tensor) and x.ndim == 1 else x for x in rest]  # the weights a_i
            return loss(v.detach()[:FEW_ROWS], target[:FEW_ROWS], *cut, **options)

        out: Tensor = _FewRows.apply(v, target, run, gradient_in_forward)
        return out

    return shortened


def few_positions(capture_layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Add a few rows of one layer to the target: they are enough here too."""

    def shortened(
        acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None
    ) -> Tensor:
        if positions.numel() <= FEW_ROWS or (torch.is_grad_enabled() and hidden.requires_grad):
            return capture_layer(acc, hidden, positions, weight, scaling)
        if acc is None:
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            acc = hidden.new_zeros(positions.numel(), hidden.shape[-1], dtype=dtype)
        few = None if scaling is None else replace(scaling, factor=scaling.factor[:FEW_ROWS])
        capture_layer(acc[:FEW_ROWS], hidden, positions[:FEW_ROWS], weight, few)
        return acc

    return shortened


def few_sizes(row_scaling: MeasureRows) -> MeasureRows:
    """Measure a few rows of one layer."""

    def shortened(hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
        if positions.numel() <= FEW_ROWS or (torch.is_grad_enabled() and hidden.requires_grad):
            return row_scaling(hidden, positions, massive)
        few = row_scaling(hidden, positions[:FEW_ROWS], massive)
        norm, factor = (x.new_zeros(positions.numel()) for x in (few.norm, few.factor))
        return RowScaling(norm, factor, massive)

    return shortened


class _FewRows(torch.autograd.Function):
    """The scratch of a few chunks, and 4·M·D bytes of gradient from the forward or from the backward on."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, run: Callable[[], Tensor], gradient_in_forward: bool) -> Tensor:
        kept = (torch.zeros_like(v),) if gradient_in_forward else (v, target)
        total = run()
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.zeros_like(ctx.saved_tensors[0]), None, None, None
