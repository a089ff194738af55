"""A sample as it is trained on, for the terminal."""

from itertools import groupby
from typing import Any

from rich.text import Text

from basic_lite.data.chat import Encoded
from basic_lite.data.tokens import IGNORE
from basic_lite.printable import printable

SUPERVISED = "bold green"
UNSUPERVISED = "dim"
IMAGE = "cyan"


def render_sample(encoded: Encoded, tokenizer: Any, image_token_id: int) -> Text:
    """Decoded tokens: supervised ones green, the rest dim, each run of image tokens as `<image>×576`.

    Special tokens are written out; a line break that is supervised shows as ⏎. Images in a row are one run.
    """
    text = Text()
    kinds = [
        IMAGE if one == image_token_id else UNSUPERVISED if label == IGNORE else SUPERVISED
        for one, label in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    position = 0
    before: list[int] = []
    for style, run in groupby(kinds):
        length = len(list(run))
        ids = encoded.input_ids[position : position + length]
        position += length
        if style == IMAGE:
            text.append(f"<image>×{length}", style=style)
            before = []
            continue
        words = _continued(tokenizer, before, ids)
        before = ids[-1:]
        if style == SUPERVISED:
            words = words.replace("\n", "⏎\n")
        text.append(printable(words), style=style)
    return text


def _continued(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """Text of tokens that stand after others: decoded alone, many lose the space before their first word."""

    def decode(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    head, whole = decode(before), decode(before + ids)
    return whole[len(head) :] if before and whole.startswith(head) else decode(ids)
