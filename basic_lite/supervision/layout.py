"""Where the visual and the text tokens of a batch are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

TextQueries = Literal["all", "prompt", "response"]


@dataclass(frozen=True)
class Layout:
    """Token roles of one batch. Packed tensors list visual tokens row by row, as the projector gives them."""

    valid: Tensor  # [B, T] bool, not padding
    visual: Tensor  # [B, T] bool, image placeholders
    text: Tensor  # [B, T] bool, text tokens whose attention counts
    positions: Tensor  # [M] int64 into the flattened B·T
    sample: Tensor  # [M] int64, row of the batch each visual token belongs to
    patches: Tensor  # [B] int64, visual tokens of each sample

    @property
    def has_image(self) -> Tensor:
        """[B] bool."""
        return self.patches > 0

    @cached_property
    def samples_with_image(self) -> int:
        """Samples of the batch that have an image."""
        return int(self.has_image.sum())

    @cached_property
    def longest_text(self) -> int:
        """The most text queries a sample has. Looked up once, so that no layer waits for the device."""
        return int(self.text.sum(dim=1).max())


def find_layout(batch: Mapping[str, Tensor], image_token_id: int, text_queries: TextQueries) -> Layout:
    """Read the roles from ``input_ids``, ``attention_mask`` and ``labels`` (each [B, T]).

    Text tokens are those that are no padding, no image, and come after the sample's first visual token: only
    they can attend to an image. ``prompt`` and ``response`` keep those without and with a label.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    visual = ids == image_token_id
    text = valid & ~visual & (visual.cumsum(dim=1) > 0)
    if text_queries != "all":
        if "labels" not in batch:
            raise ValueError(f"text_queries: {text_queries} needs labels in the batch")
        labelled = batch["labels"] != -100
        text = text & (labelled if text_queries == "response" else ~labelled)
    positions = visual.flatten().nonzero().squeeze(1)
    return Layout(
        valid=valid,
        visual=visual & valid,
        text=text,
        positions=positions,
        sample=positions // ids.shape[1],
        patches=(visual & valid).sum(dim=1),
    )
