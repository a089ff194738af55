"""Greedy answers of a trained model, in batches."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from basic_lite.data.batches import Collator
from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.records import Record
from basic_lite.errors import enough_memory
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import ImageFit, Recipe, Template
from basic_lite.sizes import number_of

# Questions that are answered at once, if nobody says otherwise.
AT_ONCE = 16


def enough_for(batch_size: int, option: str, of_one: str) -> AbstractContextManager[None]:
    """``enough_memory`` around answering so many questions at once.

    Args:
        option: that says how many.
        of_one: what mends it where it is one question already.
    """
    mend = f"lower {option}" if batch_size > 1 else of_one
    return enough_memory(mend, f"with {number_of(batch_size, 'question')} at once")


def chat_format(recipe: Recipe, frontend: Frontend, template: Template | None = None) -> ChatFormat:
    """The conversation format to ask a model in: ``template``, else the one it was trained with.

    `plain`, the format of caption training, has no question. A model trained with it is asked in its tokenizer's own
    format, or in `v1` where the tokenizer has none.
    """
    if template is None and recipe.data.template == "plain":
        template = "tokenizer" if frontend.tokenizer.chat_template else "v1"
    return ChatFormat.of(template or recipe.data.template, frontend)


def asked_otherwise(recipe: Recipe, chat: ChatFormat) -> str:
    """A note for the user where questions are asked in another format than the model was trained with; else empty."""
    if chat.template == recipe.data.template:
        return ""
    return (
        f"note: the model was trained with the {recipe.data.template} template, which has no questions; "
        f"it is asked in the {chat.template} template. A stage-1 model has learnt to caption, not to answer"
    )


@torch.no_grad()
def answer(
    loaded: Loaded,
    chat: ChatFormat,
    records: Sequence[Record],
    *,
    image_fit: ImageFit,
    batch_size: int,
    max_new_tokens: int | None = None,
    images: Callable[[int], tuple[ImageRef, ...]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    made: Callable[[int, str, bool], None] = lambda index, text, cut: None,
) -> list[str]:
    """The model's answer to the last question of each record, greedily decoded.

    Prompts are batched by length and padded on the left; the answers come back in the order of ``records``.

    Args:
        max_new_tokens: None: as many as the longest reference answer has, and 8 more.
        images: index → the images to show instead of the record's own (the shuffled control).
        progress: called with the number of answers that were made.
        made: called with each answer as soon as its batch is there: its index, its text, and whether it was cut at
            ``max_new_tokens``.
    """
    model, parts = loaded.model, loaded.parts
    prompts = [chat.prompt(record) for record in records]
    order = sorted(range(len(records)), key=lambda i: (len(prompts[i]), i))
    answers = [""] * len(records)
    length = max_new_tokens or answer_length(chat, records)
    collate, ends = Collator(int(loaded.tokenizer.pad_token_id), "left"), set(chat.stop_token_ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        samples: list[dict[str, Any]] = [{"input_ids": prompts[i]} for i in chosen]
        for sample, i in zip(samples, chosen, strict=True):
            if shown := images(i) if images is not None else records[i].images:
                sample["pixel_values"] = pixels(shown, loaded.frontend.image_processor, image_fit)
        inputs = {name: tensor.to(parts.device) for name, tensor in collate(samples).items()}
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "max_new_tokens": length}
        out = model.generate(**inputs, **generation_options(loaded, chat), **options)
        for row, i in enumerate(chosen):
            new = out[row, inputs["input_ids"].shape[1] :]
            answers[i] = loaded.tokenizer.decode(new, skip_special_tokens=True).strip()
            made(i, answers[i], not ends & set(new.tolist()))  # what ended before its batch is padded behind its end
        progress(len(chosen))
    return answers


def generation_options(loaded: Loaded, chat: ChatFormat) -> dict[str, Any]:
    """What every generation needs: what ends an answer, and that there is no image token in it."""
    return {
        "use_cache": True,
        "pad_token_id": int(loaded.tokenizer.pad_token_id),
        "eos_token_id": chat.stop_token_ids,
        "suppress_tokens": [loaded.parts.image_token_id],
    }


def answer_length(chat: ChatFormat, records: Sequence[Record]) -> int:
    """Tokens that an answer may have, at most 512; 64 where there is no reference."""
    references = {reference for record in records if (reference := chat.reference(record))}
    longest = max((len(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references), default=56)
    return min(512, longest + 8)
