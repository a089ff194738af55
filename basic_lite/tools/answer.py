"""Greedy answers of a trained model, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef, check_image, pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record
from basic_lite.errors import UserError
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import ImageFit, Recipe, Template


def chat_format(recipe: Recipe, loaded: Loaded, template: Template | None = None) -> ChatFormat:
    """The conversation format to ask a model in: ``template``, else the one it was trained with.

    `plain`, the format of caption training, has no question. A model trained with it is asked in its tokenizer's own
    format, or in `v1` where the tokenizer has none.
    """
    if template is None and recipe.data.template == "plain":
        template = "tokenizer" if loaded.tokenizer.chat_template else "v1"
    return ChatFormat(
        template or recipe.data.template,
        loaded.tokenizer,
        loaded.parts.image_token_id,
        loaded.frontend.tokens_per_image,
    )


def asked_otherwise(recipe: Recipe, form: ChatFormat) -> str:
    """A note for the user: questions are asked in another format than the model was trained with."""
    return (
        f"note: the model was trained with the {recipe.data.template} template, which has no questions; "
        f"it is asked in the {form.template} template. A stage-1 model has learnt to caption, not to answer"
    )


@torch.no_grad()
def answer(
    loaded: Loaded,
    chat: ChatFormat,
    records: Sequence[Record],
    *,
    image_fit: ImageFit,
    batch_size: int,
    max_new_tokens: int,
    images: Callable[[int], tuple[ImageRef, ...]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's answer to the last question of each record, greedily decoded.

    Prompts are batched by length and padded on the left; the answers come back in the order of ``records``.

    Args:
        images: index → the images to show instead of the record's own (the shuffled control).
        progress: called with the number of answers that were made.
    """
    model, parts = loaded.model, loaded.parts
    device = parts.embeddings.weight.device
    prompts = [chat.prompt(record) for record in records]
    order = sorted(range(len(records)), key=lambda i: (len(prompts[i]), i))
    answers = [""] * len(records)
    pad = int(loaded.tokenizer.pad_token_id)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        values = []
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
            shown = images(i) if images is not None else records[i].images
            if shown:
                values.append(pixels(shown, loaded.frontend.image_processor, image_fit))
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if values:
            inputs["pixel_values"] = torch.cat(values).to(device)
        out = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=chat.stop_token_ids,
            suppress_tokens=[parts.image_token_id],
            temperature=None,
            top_p=None,
            top_k=None,
        )
        for row, i in enumerate(chosen):
            answers[i] = loaded.tokenizer.decode(out[row, width:], skip_special_tokens=True).strip()
        if progress is not None:
            progress(len(chosen))
    return answers


def answered(
    loaded: Loaded,
    recipe: Recipe,
    records: Sequence[Record],
    *,
    batch_size: int,
    template: Template | None = None,
    images: Callable[[int], tuple[ImageRef, ...]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Reference answers of the records, and the model's answers, as long as the references are or less."""
    chat = chat_format(recipe, loaded, template)
    references = [chat.reference(record) for record in records]
    texts = answer(
        loaded,
        chat,
        records,
        image_fit=recipe.data.image_fit,
        batch_size=batch_size,
        max_new_tokens=answer_length(loaded, references),
        images=images,
        progress=progress,
    )
    return references, texts


def answer_length(loaded: Loaded, references: Sequence[str], *, default: int = 64, most: int = 512) -> int:
    """Tokens that an answer may have: those of the longest reference, and 8 more.

    Args:
        default: where there is no reference.
        most: never more than this.
    """
    longest = max(
        (len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references if text), default=0
    )
    return min(most, longest + 8) if longest else default


def require_images_open(records: Sequence[Record]) -> None:
    """Refuse records whose images are missing, before the first answer.

    Raises:
        UserError: names the first such record.
    """
    for record in records:
        try:
            for image in record.images:
                check_image(image, "exists")
        except RecordProblem as problem:
            raise UserError(str(problem.at(record.place))) from problem
