"""One sample as the model will get it, for the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.text import Text

from basic_lite.data.chat import Encoded
from basic_lite.data.tokens import IGNORE

SUPERVISED = "bold green"
UNSUPERVISED = "dim"
IMAGE = "cyan"


def render_sample(encoded: Encoded, tokenizer: Any, image_token_id: int) -> Text:
    """Decoded tokens: supervised ones green, the rest dim, each run of image tokens as `<image>×576`.

    Tokens are decoded run by run, with special tokens written out; a line break that is supervised shows as
    ⏎.
    """
    text = Text()
    kinds = [
        IMAGE if one == image_token_id else UNSUPERVISED if label == IGNORE else SUPERVISED
        for one, label in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    position = 0
    for style, run in groupby(kinds):
        length = len(list(run))
        ids = encoded.input_ids[position : position + length]
        position += length
        if style == IMAGE:
            text.append(f"<image>×{length}", style=style)
            continue
        words = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if style == SUPERVISED:
            words = words.replace("\n", "⏎\n")
        if (
            text
            and not text.plain[-1].isspace()
            and _starts_word(tokenizer, ids[0])
            and not words.startswith(" ")
        ):
            # Decoding a run alone loses the space before its first word, with SentencePiece and word-level
            # tokenizers.
            words = " " + words
        text.append(words, style=style)
    return text


def _starts_word(tokenizer: Any, token_id: int) -> bool:
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    return token.startswith(("▁", "Ġ"))
