"""What other programs write where a picture stands: taken as `<image>` where it is clear, else refused.

Left in the text, such a mark would be learned as words, and the picture would stand at the front.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from basic_lite.data.problems import BadPlaceholders, shorten
from basic_lite.data.record import IMAGE_PLACEHOLDER, Turn
from basic_lite.sizes import number_of

# Phi-3's <|image_1|>, MMMU's <image 1>, and <Image>: one for each picture.
_TAKEN = re.compile(r"<image[_ ]?(\d{1,6})>|<\|image_(\d{1,6})\|>|<image>", re.IGNORECASE)
# What looks like a mark for a picture. Some of these may be words, as of HTML. No repetition is without a bound: a
# long text would take for ever.
_MARKS = re.compile(
    r"<(?:image|img|picture|pic|photo)s?[-_#: ]{0,3}\d{0,6} ?>|<\|image_\d{1,6}\|>"
    r"|\[(?:image|picture|photo)[-_#: ]{0,3}\d{0,6}\]",
    re.IGNORECASE,
)
# These are never words: tokens of other models, and what closes their marks.
_TOKENS = re.compile(
    r"<\|(?!image_\d{1,6}\|>)\w{0,20}(?:image|img|vision|media)\w{0,20}\|>|</(?:image|img)>|<IMG_CONTEXT>"
    r"|\[IMG(?:_BREAK|_END)?\]|<image_placeholder>|<image_soft_token>|<(?:start|end)_of_image>|<ImageHere>"
    r"|<fake_token_around_image>",
    re.IGNORECASE,
)


def as_ours(turns: tuple[Turn, ...], pictures: int) -> tuple[Turn, ...]:
    """The turns of a record, with `<image>` for the marks of other programs in its questions.

    A record without pictures may have such words. So may one where `<image>` stands for each picture already, but for
    marks that are never words.

    Raises:
        BadPlaceholders: it isn't clear where the pictures belong.
    """
    asked = [turn.text for turn in turns if turn.role == "human" and ("<" in turn.text or "[" in turn.text)]
    if not pictures or not asked:
        return turns
    _require_none([mark[0] for text in asked for mark in _TOKENS.finditer(text)])
    places = sum(text.count(IMAGE_PLACEHOLDER) for text in asked)
    if places == pictures:
        return turns
    found = [mark[0] for text in asked for mark in _MARKS.finditer(text) if mark[0] != IMAGE_PLACEHOLDER]
    taken = [_TAKEN.fullmatch(one) for one in found]
    _require_none([one for one, mark in zip(found, taken, strict=True) if mark is None])
    marks = [mark for mark in taken if mark is not None]
    if not marks:
        return turns
    numbers = [int(mark[1] or mark[2]) for mark in marks if mark[1] or mark[2]]
    in_order = numbers in ([], list(range(1, len(marks) + 1)))
    if places or len(marks) != pictures or not in_order:
        raise BadPlaceholders(
            f"its questions have {shorten(_listed([mark[0] for mark in marks]))} but it has "
            f"{number_of(pictures, 'picture')}{f', and {IMAGE_PLACEHOLDER} besides' * bool(places)}",
            f"write {IMAGE_PLACEHOLDER} once for each picture, where it belongs",
        )
    return tuple(
        replace(turn, text=_TAKEN.sub(IMAGE_PLACEHOLDER, turn.text)) if turn.role == "human" else turn for turn in turns
    )


def _require_none(found: Sequence[str]) -> None:
    if found:
        raise BadPlaceholders(
            f"its questions have {shorten(_listed(found))}, another program's mark for a picture",
            f"write {IMAGE_PLACEHOLDER} where each picture belongs, instead of it",
        )


def _listed(marks: Sequence[str]) -> str:
    return " ".join(marks[:8]) + " …" * (len(marks) > 8)
