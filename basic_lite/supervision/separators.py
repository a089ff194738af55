"""Placeholders that hold no patch: some models fill one after each line of patches with a row that they have learnt."""

from collections.abc import Mapping

import torch
from torch import Tensor

from basic_lite.model.parts import Parts
from basic_lite.supervision.taps import entered


class _Seen(Exception):
    """The first layer's input has been seen, and the forward can end."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def decoder_input(parts: Parts, batch: Mapping[str, Tensor]) -> Tensor:
    """What goes into the first decoder layer, [B, T, D]; no layer runs.

    Raises:
        RuntimeError: the forward doesn't come to that layer.
    """

    def stop(hidden: Tensor) -> None:
        raise _Seen(hidden)

    try:
        with entered(parts.layers[0], stop):
            parts.model.model(**batch, use_cache=False)
    except _Seen as seen:
        return seen.hidden
    raise RuntimeError("the forward ran, but not through the first decoder layer")


def without_separators(parts: Parts, batch: Mapping[str, Tensor], separator: Tensor | None) -> dict[str, Tensor]:
    """The batch with ``visual`` [B, T] bool, the placeholders that hold a patch, as ``find_layout`` takes it.

    Args:
        separator: the row [D] that others hold; None: every placeholder holds a patch, and the batch stays as it is.
    """
    if separator is None:
        return dict(batch)
    hidden = decoder_input(parts, {name: tensor for name, tensor in batch.items() if name != "labels"})
    patches = (hidden != separator.to(hidden)).any(dim=-1) & (batch["input_ids"] == parts.image_token_id)
    return {**batch, "visual": patches}
