"""What BASIC sees in an answer of a run: the words nearest to each visual token, and the answer's attention to it.

One forward of the finished conversation, with the taps that training opens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from basic_lite.data.chat import IGNORE
from basic_lite.data.images import fit, open_image
from basic_lite.supervision import Supervision, choose_kernels
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite.supervision.target import TargetPlan
from basic_lite.tools.chat.dialogue import Message, pictures_of
from basic_lite.tools.chat.of_run import RunSpeaker, record_of


@dataclass(frozen=True)
class Inside:
    """One picture's visual tokens, row by row; a class token is left out."""

    picture: Image.Image  # square, as the vision encoder gets it
    side: int  # patches in a row
    words: list[str]  # nearest to v, side² of them
    target_words: list[str]  # nearest to v̂
    attention: list[float]  # a_i of the last answer's tokens

    @property
    def mass(self) -> float:
        """Σ a_i over the patches."""
        return sum(self.attention)


@torch.no_grad()
def look_inside(speaker: RunSpeaker, messages: Sequence[Message]) -> tuple[list[Inside], int]:
    """What the last answer saw in each picture of the conversation, and K, how many layers were read.

    Args:
        messages: end with the answer; there is a picture among them.

    Raises:
        UserError: the LLM's attention can't be read.
    """
    record = record_of(messages)
    chat, parts = speaker.chat, speaker.loaded.parts
    # No length is too long here: the model has just read it.
    encoded = chat.encode(record, 2**31)
    asked = len(chat.prompt(record))
    supervision = _reader(speaker)
    inputs = speaker.inputs(record, encoded.input_ids)
    labels = torch.tensor([[IGNORE] * asked + encoded.labels[asked:]])
    layout = supervision.layout({**inputs, "labels": labels})
    with supervision.capture(layout) as captured:
        parts.model.model(**inputs, use_cache=False)  # without the head: no [1, T, V] logits
    assert captured.v is not None and captured.target is not None
    words, target_words = (supervision.vocabulary.nearest(rows).cpu() for rows in (captured.v, captured.target))
    attention = patch_weights(captured, "attention", None).cpu()
    return _by_picture(speaker, messages, words, target_words, attention), supervision.layers


def _reader(speaker: RunSpeaker) -> Supervision:
    """The run's supervision with its target, reading the attention of the answer whatever it trained with."""
    settings = speaker.recipe.supervision.model_copy(
        update={
            "enabled": True,
            "lambda_das": 0.0,
            "lambda_sds": 1.0,
            "token_weights": "attention",
            "text_queries": "response",
        }
    )
    loaded = speaker.loaded
    operations, _ = choose_kernels("auto", loaded.parts.embeddings.weight.device, lambda _: None)
    supervision = Supervision(loaded.parts, settings, vocabulary_ids=loaded.vocabulary_ids, operations=operations)
    if chosen := speaker.bundle.manifest.get("target"):
        supervision.use(TargetPlan.of(chosen))
    return supervision


def _by_picture(
    speaker: RunSpeaker, messages: Sequence[Message], words: Tensor, target_words: Tensor, attention: Tensor
) -> list[Inside]:
    """Cut what belongs to all visual tokens, [M] each, into pictures."""
    frontend = speaker.loaded.frontend
    count, vision = frontend.tokens_per_image, frontend.config.vision_config
    side = vision.image_size // vision.patch_size
    first = count - side * side  # the class token comes first where it is kept
    found = []
    for n, picture in enumerate(pictures_of(messages)):
        own = slice(n * count + first, (n + 1) * count)
        found.append(
            Inside(
                fit(open_image(picture), speaker.recipe.data.image_fit, frontend.image_processor),
                side,
                [shown_word(speaker.loaded.tokenizer, i) for i in words[own].tolist()],
                [shown_word(speaker.loaded.tokenizer, i) for i in target_words[own].tolist()],
                attention[own].tolist(),
            )
        )
    return found


def shown_word(tokenizer: Any, token_id: int) -> str:
    """A token as a person reads it; its name in the vocabulary where it has no visible text."""
    text = str(tokenizer.decode([token_id])).strip()
    return text if text and text.isprintable() else str(tokenizer.convert_ids_to_tokens(token_id))
