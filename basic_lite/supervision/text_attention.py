"""How much of the text's attention goes to the picture, layer by layer, in layers whose attention is a softmax."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from basic_lite.errors import UserError
from basic_lite.model.parts import Parts
from basic_lite.supervision.attention import WatchedAttention, attention_mass
from basic_lite.supervision.layout import Layout, TextQueries, find_layout
from basic_lite_kernels.operations import Operations


def layer_mass(
    module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any], layout: Layout, operations: Operations
) -> Tensor | None:
    """What the text of ``layout`` pays to each position, [B, T], summed over text tokens and meaned over heads.

    Args:
        module, query, key, options: as ``WatchedAttention.watching`` hands them over.

    Returns:
        None: the layer has no plain softmax, and can't be read.
    """
    try:
        return attention_mass(module, query, key, options, layout, operations)
    except UserError:
        return None


class TextAttention:
    """Adds up Σ_i a_i of each layer while batches pass through the model.

    ::

        meter = TextAttention(parts, operations)
        with meter.watching():
            see_patches(supervision, meter.over(batches), tokenizer)
        meter.masses()
    """

    def __init__(self, parts: Parts, operations: Operations, text_queries: TextQueries = "all") -> None:
        self._parts, self._operations, self._queries = parts, operations, text_queries
        self._layer = {module: h for h, layer in enumerate(parts.layers) for module in layer.modules()}
        self._sums: dict[int, float] = {}
        self._samples = 0
        self._layout: Layout | None = None

    def watching(self) -> AbstractContextManager[None]:
        """A context in which the model's forwards are watched."""
        return WatchedAttention(self._parts.language_model, self._parts.layers).watching(self._add)

    def over(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        """The batches; each is the one that the next forward is taken for."""
        for batch in batches:
            self._layout = find_layout(batch, self._parts.image_token_id, self._queries).to(self._parts.device)
            self._samples += self._layout.samples_with_image
            yield batch

    @torch.no_grad()
    def _add(self, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        assert self._layout is not None, "a forward of no batch"
        layout = self._layout
        mass = layer_mass(module, query, key, options, layout, self._operations)
        if mass is None:
            return
        rows = layout.text.sum(dim=1).clamp_min(1)
        shares = (mass.sum(dim=1) / rows).index_select(0, layout.rows_with_image)
        layer = self._layer[module]
        self._sums[layer] = self._sums.get(layer, 0.0) + float(shares.sum())

    def masses(self) -> list[float | None]:
        """Σ_i a_i after each layer, the mean over samples; None: the layer has no plain softmax."""
        found = [self._sums.get(layer) for layer in range(len(self._parts.layers))]
        return [None if one is None else one / max(1, self._samples) for one in found]
