"""Where the visual and the text tokens of a batch are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from basic_lite.data.tokens import IGNORE
from basic_lite.to_device import to_device
from basic_lite_kernels.signatures import MassTokens, listed

TextQueries = Literal["all", "prompt", "response"]


@dataclass(frozen=True)
class Layout:
    """The roles of a batch's tokens. Packed tensors list visual tokens row by row, as the projector gives them."""

    valid: Tensor  # [B, T] bool, not padding
    visual: Tensor  # [B, T] bool, image placeholders
    text: Tensor  # [B, T] bool, text tokens whose attention counts
    positions: Tensor  # [M] int64 into the flattened B·T
    sample: Tensor  # [M] int64, row of the batch each visual token belongs to
    patches: Tensor  # [B] int64, visual tokens of each sample
    shares: Tensor  # [M] float32, a visual token's share in the mean over a sample's, and then over samples
    pair_shares: Tensor  # [B] float32, a pair's share in the mean over pairs and samples
    rows_with_image: Tensor  # [S] int64, rows of the batch that have an image
    text_rows: Tensor  # [B, R] int32, the positions of ``text`` and of ``visual``, each listed as in ``MassTokens``
    visual_columns: Tensor  # [B, C] int32
    sds_rows: Tensor | None = None  # [R] int64 into the M visual tokens: those that SDS is computed on; None: all
    sds_sizes: Tensor | None = None  # [R] float32: how many visual tokens each of them stands for

    @cached_property
    def members(self) -> Tensor:
        """[B, M] bool: the visual tokens of each sample. A product with it sums over them, without atomics."""
        samples = torch.arange(self.patches.numel(), device=self.sample.device)
        return self.sample == samples.unsqueeze(1)

    @property
    def samples_with_image(self) -> int:
        """Samples of the batch that have an image."""
        return self.rows_with_image.numel()

    @property
    def mass_tokens(self) -> MassTokens:
        """The tokens that attention mass is about."""
        return MassTokens(self.valid, self.text_rows, self.visual_columns)

    def to(self, device: torch.device) -> Layout:
        """The same on ``device``. A GPU's copy is queued behind its work; nothing waits for it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: value for name, value in fields.items() if value is not None}
        return dataclasses.replace(self, **to_device(tensors, device))


def find_layout(batch: Mapping[str, Tensor], image_token_id: int, text_queries: TextQueries) -> Layout:
    """Read the roles from ``input_ids``, ``attention_mask`` and ``labels`` (each [B, T]), on the CPU.

    Text tokens are those that are no padding, no image, and come after the sample's first visual token: only
    they can attend to an image. ``prompt`` and ``response`` keep those without and with a label.

    Args:
        batch: best the host's: a GPU's is copied to the CPU first, which waits for the GPU. ``visual`` [B, T] bool says
            which placeholders hold a patch, where not all of them do.

    Raises:
        ValueError: ``prompt`` or ``response`` are asked for, and there are no labels.
    """
    ids = batch["input_ids"].cpu()
    mask = batch.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu().bool()
    visual = batch["visual"].cpu() if "visual" in batch else ids == image_token_id
    text = valid & ~visual & (visual.cumsum(dim=1) > 0)
    if text_queries != "all":
        if "labels" not in batch:
            raise ValueError(f"text_queries: {text_queries} needs labels in the batch")
        labelled = batch["labels"].cpu() != IGNORE
        text = text & (labelled if text_queries == "response" else ~labelled)
    positions = visual.flatten().nonzero().squeeze(1)
    patches = (visual & valid).sum(dim=1)
    return Layout(
        valid=valid,
        visual=visual & valid,
        text=text,
        positions=positions,
        sample=positions // ids.shape[1],
        patches=patches,
        shares=_shares(visual.sum(dim=1)),
        pair_shares=_pair_shares(visual.sum(dim=1).tolist()),
        rows_with_image=patches.nonzero().squeeze(1),
        text_rows=listed(text),
        visual_columns=listed(visual & valid),
    )


def _shares(patches: Tensor) -> Tensor:
    """1 / N / the samples with N > 0, for each of the N visual tokens of a sample, [M] float32."""
    return (1 / (patches * (patches > 0).sum())).repeat_interleave(patches)


def _pair_shares(patches: list[int]) -> Tensor:
    """1 / (N (N − 1)) / the samples with N > 1, for each sample's N visual tokens, [B] float32; 0 where N < 2."""
    several = sum(n > 1 for n in patches)
    return torch.tensor([1 / (n * (n - 1) * several) if n > 1 else 0.0 for n in patches])
