"""Next-token cross-entropy on labelled rows, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from basic_lite.units import MIB

CHUNK_BYTES = 256 * MIB
"""Bytes one chunk of float32 logits may take."""


def _chunk_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), labels, reduction="sum")


def lm_loss(hidden: Tensor, head: nn.Module, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Summed cross-entropy divided by ``num_items``; equals transformers' ``ForCausalLMLoss``.

    Peak extra bytes: 3 × min(CHUNK_BYTES, 4 · rows · V) (logits, their gradient, the softmax), since chunks are
    recomputed in the backward.

    Args:
        hidden: [R, D], the final hidden states that predict a labelled token, packed.
        head: the LLM's output layer, D → V.
        labels: [R], the token ids to predict.
        num_items: divisor, labelled tokens of the whole optimizer step; None: R.
    """
    rows = hidden.shape[0]
    divisor = rows if num_items is None else num_items
    if rows == 0:
        return hidden.sum() * 0.0
    vocabulary = head.weight.shape[0]
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    if rows <= chunk:
        return _chunk_loss(hidden, head, labels) / divisor
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        total = total + checkpoint(_chunk_loss, hidden[part], head, labels[part], use_reentrant=False)
    return total / divisor
