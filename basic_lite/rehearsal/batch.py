"""The batch that takes most memory: every sample as long as the recipe allows, each with an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from basic_lite.data.check import DataReport
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import UserError
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Shape:
    """Sizes of one micro-batch."""

    samples: int  # B
    tokens: int  # T, image tokens included
    images: int  # a sample's
    accumulation: int  # micro-batches of an optimizer step

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        """A micro-batch of samples as long as the recipe allows."""
        training = recipe.training
        return cls(training.micro_batch, recipe.data.max_length, 1, training.global_batch // training.micro_batch)

    @classmethod
    def longest(cls, recipe: Recipe, frontend: Frontend, report: DataReport) -> Shape:
        """A micro-batch of the data's longest sample."""
        return cls._of_sample(recipe, frontend, float(report.lengths.max()), int(report.n_images.max()))

    @classmethod
    def mean(cls, recipe: Recipe, frontend: Frontend, report: DataReport) -> Shape:
        """A micro-batch of the data's mean sample."""
        return cls._of_sample(recipe, frontend, float(report.lengths.mean()), round(float(report.n_images.mean())))

    @classmethod
    def _of_sample(cls, recipe: Recipe, frontend: Frontend, tokens: float, images: int) -> Shape:
        """A sample has an image and a word at least."""
        images = max(images, 1)
        least = images * frontend.tokens_per_image + 2
        return replace(cls.of(recipe), tokens=max(round(tokens), least), images=images)


def longest_batch(frontend: Frontend, shape: Shape) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask``, ``labels`` [B, T]; the pixels are made by the rehearsal.

    One token, the sample's images, then text that is all supervised. All but the first of several samples are one
    token shorter, because attention needs a mask when there is padding.

    Raises:
        UserError: no room for text beside the images.
    """
    visual = shape.images * frontend.tokens_per_image
    if visual + 2 > shape.tokens:
        raise UserError(
            f"data.max_length is {shape.tokens}, too short for {visual} image tokens and a word; raise data.max_length"
        )
    word = min(i for i in frontend.tokenizer.get_vocab().values() if i != frontend.image_token_id)
    ids = torch.full((shape.samples, shape.tokens), word)
    ids[:, 1 : 1 + visual] = frontend.image_token_id
    labels = ids.clone()
    labels[:, : 1 + visual] = IGNORE
    mask = torch.ones_like(ids)
    if shape.samples > 1:
        mask[1:, -1] = 0
        labels[1:, -1] = IGNORE
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
