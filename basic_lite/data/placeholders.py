"""What other programs write where a picture stands: taken as `<image>` where it is clear, else refused.

Left in the text, such a mark would be learned as words, and the picture would stand at the front.
"""

import re
from collections.abc import Sequence

from basic_lite.data.problems import BadPlaceholders, shorten
from basic_lite.data.record import IMAGE_PLACEHOLDER, Turn

# Phi-3's <|image_1|>, MMMU's <image 1>, and <Image>: one for each picture.
_TAKEN = re.compile(r"<image[_ ](\d{1,6})>|<\|image_(\d{1,6})\|>|<(?!image>)[Ii][Mm][Aa][Gg][Ee]>")
# These may be words, too: of HTML, or of another numbering.
_REFUSED = re.compile(r"<img>|<image[-#]?\d+>|<image #\d+>", re.IGNORECASE)
# These are never words: tokens of other models, and what closes their marks.
_TOKENS = re.compile(
    r"<\|(?:vision_start|vision_end|vision_pad|image_pad|image|img|image_start|image_end|begin_of_image|end_of_image"
    r"|endofimage|media_begin|media_pad|media_end)\|>|</(?:image|img)>|<IMG_CONTEXT>|\[IMG(?:_BREAK|_END)?\]|\[IMAGE\]"
    r"|<image_placeholder>|<image_soft_token>|<(?:start|end)_of_image>|<ImageHere>|<fake_token_around_image>"
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
    _require_none(_TOKENS, asked)
    places = sum(text.count(IMAGE_PLACEHOLDER) for text in asked)
    if places == pictures:
        return turns
    _require_none(_REFUSED, asked)
    marks = [mark for text in asked for mark in _TAKEN.finditer(text)]
    if not marks:
        return turns
    numbers = [int(mark[1] or mark[2]) for mark in marks if mark[1] or mark[2]]
    in_order = numbers in ([], list(range(1, len(marks) + 1)))
    if places or len(marks) != pictures or not in_order:
        raise BadPlaceholders(
            f"its questions have {shorten(_listed([mark[0] for mark in marks]))} but it has {pictures} "
            f"picture{'s' * (pictures != 1)}{f', and {IMAGE_PLACEHOLDER} besides' * bool(places)}",
            f"write {IMAGE_PLACEHOLDER} once for each picture, where it belongs",
        )
    return tuple(
        Turn(turn.role, _TAKEN.sub(IMAGE_PLACEHOLDER, turn.text)) if turn.role == "human" else turn for turn in turns
    )


def _require_none(marks: re.Pattern[str], texts: Sequence[str]) -> None:
    found = [mark[0] for text in texts for mark in marks.finditer(text)]
    if found:
        raise BadPlaceholders(
            f"its questions have {shorten(_listed(found))}, another program's mark for a picture",
            f"write {IMAGE_PLACEHOLDER} where each picture belongs, instead of it",
        )


def _listed(marks: Sequence[str]) -> str:
    return " ".join(marks[:8]) + " …" * (len(marks) > 8)
