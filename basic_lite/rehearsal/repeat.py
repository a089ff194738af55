"""Run once what only repeats itself (decoder layers, chunks of rows), so that a rehearsal takes seconds.

In the forward a recomputed layer leaves its input behind, any other all its activations; in the backward both leave
gradients. They give everything else back before the next layer starts. What is left behind changes by the same amount
from one layer to the next, where layers are alike. So the peak is at an end: in the first or the last layer of either
sort, or in the last one that BASIC watches. Those run in full. The others only keep and make what they leave behind;
how much the activations are is read off the first layer that keeps them.

What has no graph runs once for its sizes (``Ledger.once``): the vision tower, and BASIC's operations on a few rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.model.parts import Parts
from basic_lite.rehearsal.ledger import BLOCK_BYTES, Ledger, fake, sizes_of
from basic_lite.supervision import Supervision
from basic_lite.supervision.attention import is_watched
from basic_lite_kernels.signatures import MassTokens, MeasureRows, RowScaling


class Footprint:
    """What a layer keeps for its backward besides its output, seen while it runs in full.

    Attributes:
        bytes: of all but its input and output.
        with_input: its input too. In 16 bit it needn't: a norm keeps a float32 copy.

    Args:
        layer: gets forward hooks, until ``remove``.
        ledger: the ledger.
        tag: of all that the layer makes in the forward for itself.
    """

    def __init__(self, layer: nn.Module, ledger: Ledger, tag: str) -> None:
        self.bytes, self.with_input = 0, False
        self._ledger, self._tag, self._before = ledger, tag, 0
        self._handles = [layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)]

    def remove(self) -> None:
        """Watch the layer no longer."""
        for handle in self._handles:
            handle.remove()

    def tagged(self) -> int:
        """Live bytes with the tag."""
        return self._ledger.by_tag[self._tag]

    def _enter(self, _layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        given = args[0].untyped_storage()._cdata
        self.with_input = False

        def see(tensor: Tensor) -> Tensor:
            self.with_input |= tensor.untyped_storage()._cdata == given
            return tensor

        self._hooks = saved_tensors_hooks(see, lambda tensor: tensor)
        self._hooks.__enter__()
        self._before = self.tagged()

    def _leave(self, _layer: nn.Module, _args: Any, out: Any) -> None:
        self._hooks.__exit__()
        self.bytes = self.tagged() - self._before - (out[0] if isinstance(out, tuple) else out).nbytes


class RepeatedLayer(nn.Module):
    """Replace a decoder layer and leave behind the tensors that it would.

    Args:
        layer: the layer whose parameters get gradients.
        ledger: the ledger that counts the gradients.
        watched: BASIC reads this layer's attention, so the attention function is called with tensors of its shapes.
        footprint: of an earlier layer like it that isn't recomputed either; None: this one is.
    """

    def __init__(self, layer: nn.Module, ledger: Ledger, watched: bool, footprint: Footprint | None) -> None:
        super().__init__()
        self.layer = layer
        self.ledger = ledger
        self.watched = watched
        self.footprint = footprint
        self.gradients: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        if self.watched:
            self._attend(hidden_states)
        out: Tensor = _Repeated.apply(hidden_states, self, self.footprint if torch.is_grad_enabled() else None)
        return out

    def run(self, hidden: Tensor, like: Footprint | None) -> tuple[Tensor, list[Tensor]]:
        """The output [B, T, D], and what is kept for the backward: as a layer that isn't recomputed, or its input."""
        if like is None:
            return torch.empty_like(hidden), [hidden]
        rest = hidden.new_empty(like.bytes, dtype=torch.uint8)
        return torch.empty_like(hidden), [rest, *[hidden] * like.with_input]

    @torch.no_grad()
    def _attend(self, hidden: Tensor) -> None:
        attention = next(m for m in self.layer.modules() if hasattr(m, "layer_idx") and hasattr(m, "head_dim"))
        config = attention.config
        if not is_watched(config):
            return  # a look at the premise, which reads no attention
        B, T = hidden.shape[:2]
        query = hidden.new_empty(B, config.num_attention_heads, T, attention.head_dim)
        key = hidden.new_empty(B, config.num_key_value_heads, T, attention.head_dim)
        function = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        function(attention, query, key, key, None, scaling=attention.scaling)

    def make_gradients(self) -> None:
        """Leave the gradients that the layer's backward would leave, as one tensor."""
        if self.gradients is None:
            trained = [p for p in self.layer.parameters() if p.requires_grad]
            size = sum(-(-p.nbytes // BLOCK_BYTES) * BLOCK_BYTES for p in trained)
            self.gradients = fake(self.ledger, (size,), torch.uint8, "gradients")


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: RepeatedLayer, like: Footprint | None) -> Tensor:
        out, kept = layer.run(hidden, like)
        ctx.save_for_backward(*kept)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.layer.make_gradients()
        return torch.empty_like(grad), None, None


@contextmanager
def repeated_layers(
    parts: Parts, ledger: Ledger, supervision: Supervision | None, *, recomputed: int, tag: str
) -> Iterator[None]:
    """Replace layers that are alike, for a while. Of a sort, the first, the last and the last supervised run in full.

    Args:
        recomputed: how many of the layers, the first ones, are recomputed in the backward.
        tag: of what the others keep.
    """
    layers = list(parts.layers)
    supervised = 0 if supervision is None else supervision.layers
    watched = supervision is not None and supervision.reads_attention
    types = getattr(parts.language_model.config, "layer_types", None) or []
    sorts: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
        sort = shapes, types[index] if index < len(types) else None, index < recomputed
        sorts.setdefault(sort, []).append(index)
    with ExitStack() as undo:
        for (*_, again), members in sorts.items():
            footprint = None if again else Footprint(layers[members[0]], ledger, tag)
            if footprint is not None:
                undo.callback(footprint.remove)
            full = {0, len(layers) - 1, supervised - 1, members[0], members[-1]}
            full |= set([i for i in members if i < supervised][-1:])
            for index in set(members) - full:
                seen = watched and index < supervised
                parts.layers[index] = RepeatedLayer(layers[index], ledger, seen, footprint)
        try:
            yield
        finally:
            for index, layer in enumerate(layers):
                parts.layers[index] = layer


class OnceTower(nn.Module):
    """A vision tower that is run once for each size of pictures: it is frozen, so it leaves its output alone behind."""

    def __init__(self, tower: nn.Module, ledger: Ledger) -> None:
        super().__init__()
        self.tower = tower
        self.ledger = ledger

    def forward(self, pixels: Tensor, **options: Any) -> Any:
        """As the tower's, [I, 3, h, w] → what its family gives."""
        key = "tower", *sizes_of(pixels), str(options)
        return self.ledger.once(key, lambda: self.tower(pixels, **options))


def few_samples(attention_mass: Callable[..., Tensor], ledger: Ledger, chunk: int) -> Callable[..., Tensor]:
    """Compute attention mass of a few samples: they are worked on a few at a time, ``chunk`` elements in a round."""

    def shortened(query: Tensor, key: Tensor, tokens: MassTokens, out: Tensor | None = None, **options: Any) -> Tensor:
        B, _, T, d = query.shape
        round_of = slice(1 + chunk // (key.shape[1] * T * d))
        few = query[round_of], key[round_of]
        tokens = tokens.samples(round_of)
        sizes = sizes_of(*few, *vars(tokens).values())
        ledger.once(("mass", *sizes, *options.items()), lambda: attention_mass(*few, tokens=tokens, **options))
        return query.new_zeros(B, T, dtype=torch.promote_types(query.dtype, torch.float32)) if out is None else out

    return shortened


# Several chunks of every operation of BASIC that goes through visual tokens in chunks.
FEW_ROWS = 512


def few_rows(loss: Callable[..., Tensor], ledger: Ledger, *, gradient_in_forward: bool) -> Callable[..., Tensor]:
    """Compute DAS or SDS on a few rows, once. Every chunk needs the same scratch; the gradient has all rows.

    SDS makes its gradient in the forward and keeps that; DAS keeps v and v̂.
    """

    def shortened(v: Tensor, target: Tensor, *rest: Any, **options: Any) -> Tensor:
        if v.shape[0] <= FEW_ROWS or target.requires_grad:
            return loss(v, target, *rest, **options)

        def run() -> Tensor:
            cut = [x[:FEW_ROWS] if isinstance(x, Tensor) and x.ndim == 1 else x for x in rest]  # the weights a_i
            given = v.detach()[:FEW_ROWS], target[:FEW_ROWS], *cut
            key = "loss", gradient_in_forward, *sizes_of(*given, *options.values())
            return ledger.once(key, lambda: loss(*given, **options))

        out: Tensor = _FewRows.apply(v, target, run, gradient_in_forward)
        return out

    return shortened


def few_positions(capture_layer: Callable[..., Tensor], ledger: Ledger) -> Callable[..., Tensor]:
    """Add a few rows of one layer to the target: they are enough here too."""

    def shortened(
        acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None
    ) -> Tensor:
        if torch.is_grad_enabled() and hidden.requires_grad:
            return capture_layer(acc, hidden, positions, weight, scaling)
        if acc is None:
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            acc = hidden.new_zeros(positions.numel(), hidden.shape[-1], dtype=dtype)
        few = None if scaling is None else replace(scaling, factor=scaling.factor[:FEW_ROWS])
        given = acc[:FEW_ROWS], hidden, positions[:FEW_ROWS]

        def run() -> None:
            capture_layer(*given, weight, few)

        ledger.once(("share", *sizes_of(*given, *([] if few is None else vars(few).values()))), run)
        return acc

    return shortened


def few_sizes(row_scaling: MeasureRows, ledger: Ledger) -> MeasureRows:
    """Measure a few rows of one layer."""

    def shortened(hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
        if torch.is_grad_enabled() and hidden.requires_grad:
            return row_scaling(hidden, positions, massive)

        def run() -> tuple[Tensor, Tensor]:
            few = row_scaling(hidden, positions[:FEW_ROWS], massive)
            return few.norm, few.factor

        norm, factor = ledger.once(("sizes", *sizes_of(hidden, positions[:FEW_ROWS], massive)), run)
        if positions.numel() > FEW_ROWS:
            norm, factor = (x.new_zeros(positions.numel()) for x in (norm, factor))
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
