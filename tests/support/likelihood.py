"""How likely an answer is, computed naively: one at a time, all logits, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.record import Record, Turn
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Naive:
    """An opened run.

    Attributes:
        end: the text of the token that ends an answer.
    """

    loaded: Loaded
    recipe: Recipe
    chat: ChatFormat
    end: str

    def loss(self, question: str, images: Sequence[ImageRef], answer: str) -> tuple[float, bool]:
        """−log p of an answer and its end, and whether each of its tokens is the likeliest."""
        prompt = self.chat.prompt(Record(0, "", "", tuple(images), (Turn("human", question),)))
        ids = self.loaded.tokenizer(answer + self.end, add_special_tokens=False)["input_ids"]
        processor, fit = self.loaded.frontend.image_processor, self.recipe.data.image_fit
        given = {"pixel_values": pixels(images, processor, fit)} if images else {}
        with torch.no_grad():
            logits = self.loaded.model(input_ids=torch.tensor([prompt + ids]), **given).logits[0].double()  # [T, V]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        loss = -sum(float(row[token]) for row, token in zip(rows, ids, strict=True))
        return loss, rows.argmax(-1).tolist() == ids
