"""A row of any source, as LLaVA, ShareGPT, LLaMA-Factory, OpenAI, TRL or a table has it, to pictures and turns.

What a row may be:

- a conversation: a list of turns with from/value or role/content, where a content may be a list of parts;
- a prompt and a completion, each a text or a list of turns (TRL);
- a question and an answer, perhaps with `input`, `system` and `history` (LLaMA-Factory's alpaca);
- a picture and a text: the source's `prompt` stands where the question would.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from basic_lite.data.columns import COLUMNS, picture_columns, plain_name
from basic_lite.data.images import ImageRef
from basic_lite.data.pictures import columns_of, filled_column, image_at, images_of, is_filled
from basic_lite.data.placeholders import as_ours
from basic_lite.data.problems import BadPlaceholders, BadRecord, shorten
from basic_lite.data.prompts import drawn
from basic_lite.data.record import IMAGE_PLACEHOLDER, ROLES, Role, Turn
from basic_lite.data.unclear import (
    refuse_nul,
    refuse_swapped,
    refuse_written_lists,
    require_one_question,
    require_shown_options,
)
from basic_lite.data.unfit import (
    holds_pictures,
    refuse_marks,
    refuse_media_in,
    refuse_numbered_pictures,
    refuse_unfit,
    refuse_unread_pictures,
)
from basic_lite.data.unlearned import is_learned
from basic_lite.outside import parse_json
from basic_lite.sizes import number_of

# A turn with no other keys says who speaks, and what.
_USUAL = frozenset(("from", "value", "role", "content"))
# Where a turn has a call of a tool.
_CALLS = ("tool_calls", "function_call")
# A part that is a picture has one of these types, and its picture under one of these keys.
_PICTURE_TYPES = ("image", "image_url", "input_image")
_PICTURE_KEYS = ("image_url", "image", "path", "url")
# A turn itself may have pictures, as Ollama writes them.
PICTURES_OF_TURN = ("images", "image")


class Content(NamedTuple):
    """What a row holds."""

    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    answer: str | None
    question_type: str | None


class NamedRow:
    """A row with our names for its columns, and the pictures that its turns bring along.

    Args:
        asked: our names to the row's, as the recipe maps them; the others are found.

    Raises:
        BadRecord: the row is no object.
    """

    def __init__(self, row: Any, asked: Mapping[str, str], image_dir: str) -> None:
        if not isinstance(row, Mapping):
            raise BadRecord(f"a record must be an object, this is {shorten(row)}", "give it id, image, conversations")
        self.row, self.asked, self.image_dir = row, asked, image_dir
        self.columns = columns_of(row, asked)
        # In the order of the placeholders of the human turns; None: the next of the row's own pictures.
        self.pictures: list[ImageRef | None] = []
        self.in_parts = False

    @property
    def id(self) -> str:
        """The record's own; empty when it has none."""
        return name_of(self.row.get(self.columns.get("id", "id"))) or ""

    def get(self, ours: str) -> Any:
        return self.row.get(self.columns[ours]) if ours in self.columns else None


def read_row(one: NamedRow, prompts: Sequence[str], number: int) -> Content:
    """Read one row.

    Args:
        prompts: the source's `prompt`.
        number: the record's, which chooses one of the prompts.

    Raises:
        BadRecord, BadImage, BadPlaceholders: it is no usable conversation.
    """
    row = one.row
    refuse_unfit(row, one.columns)
    first, *others = picture_columns(one.columns, row) or ("",)
    column = filled_column(row, [first, *(name for name in others if holds_pictures(name, row[name]))])
    images = tuple(images_of(row.get(column or ""), one.image_dir))
    answer = _answer(one.get("answer"))
    turns = _turns(one, answer, bool(images), prompts, number)
    for turn in turns:
        refuse_nul(turn.text)
    if one.get("conversations") is None:
        refuse_swapped(row, one.columns)
        refuse_written_lists(row, one.columns, prompted=bool(prompts))
        asked = "\n".join(turn.text for turn in turns if turn.role != "gpt")
        require_shown_options(row, asked, one.get("answer"))
    placed = _placed(one, images)
    # A column of an unusual name was mapped by the user, who so says which pictures there are.
    if not placed and plain_name(one.asked.get("image", "image")) in COLUMNS["image"]:
        refuse_unread_pictures(row, one.columns)
    if "image" not in one.asked:
        refuse_numbered_pictures(row, one.columns)
    return Content(placed, as_ours(turns, len(placed)), answer, name_of(one.get("question_type")))


def name_of(value: Any) -> str | None:
    """An id or a type of questions as text; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (Mapping, list, tuple, bytes)) or (isinstance(value, int) and value.bit_length() > 1000):
        return shorten(value)
    return clean(str(value))


def _placed(row: NamedRow, images: tuple[ImageRef, ...]) -> tuple[ImageRef, ...]:
    """The pictures in the order of their places: those inside the messages, and the row's own for the others."""
    if not row.in_parts:
        return images
    places, open_places = len(row.pictures), row.pictures.count(None)
    if open_places != len(images):
        own = row.columns.get("image", "images")
        raise BadPlaceholders(
            f"its messages have {number_of(places, 'picture')}, {open_places} of them without a file, "
            f"and the record lists {len(images) or 'none'} under {own!r}",
            f"give each part of type image its file ({', '.join(_PICTURE_KEYS)}), or list the files under {own!r}",
        )
    rest = iter(images)
    return tuple(one if one is not None else next(rest) for one in row.pictures)


def _answer(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and not is_turns(value):
        # VQA lists the answers of several people, COCO several captions; the first stands for them.
        texts = (one.get("answer") if isinstance(one, Mapping) else one for one in value)
        value = next((one for one in texts if isinstance(one, str) and one.strip()), None)
    if value is None or is_turns(value):
        return None
    if isinstance(value, bool | Mapping | bytes) or (isinstance(value, float) and not math.isfinite(value)):
        # Written as Python writes it, it would be what the model learns to say.
        raise BadRecord(f"its answer is {shorten(value)}, not a text", "write the text of the answer, in quotes")
    return clean(str(value))


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns: objects that say who speaks."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in value)
    )


def _turns(row: NamedRow, answer: str | None, has_image: bool, prompts: Sequence[str], number: int) -> tuple[Turn, ...]:
    conversation, question = row.get("conversations"), row.get("question")
    if conversation is None and is_turns(question):
        completion = row.get("answer")
        if is_turns(completion):
            conversation = [*question, *completion]
        else:
            conversation = [*question, *([{"role": "assistant", "content": answer}] if answer is not None else [])]
    if prompts and (conversation is not None or question is not None):
        raise BadRecord(
            "it has a question of its own, and this data source sets `prompt`", "remove `prompt` of this data source"
        )
    if conversation is not None:
        turns = tuple(_turn(turn, n, row) for n, turn in enumerate(_listed(conversation), 1))
    else:
        turns = (*_history(row), *_pair(row, question, answer, has_image, prompts, number))
    system = row.get("system")
    if isinstance(system, str) and system.strip() and not any(turn.role == "system" for turn in turns):
        turns = (Turn("system", clean(system)), *turns)
    return turns


def _listed(conversation: Any) -> Sequence[Any]:
    if isinstance(conversation, str):
        try:
            conversation = parse_json(conversation)
        except ValueError as error:
            raise BadRecord(f"conversations is text that isn't JSON ({error})", "make it a list of turns") from error
    if isinstance(conversation, Mapping) and all(isinstance(v, (list, tuple)) for v in conversation.values()):
        # How older `datasets` store a list of objects: an object of lists.
        keys = list(conversation)
        if len({len(values) for values in conversation.values()}) > 1:
            raise BadRecord("its conversations is an object of lists that differ in length", "make it a list of turns")
        conversation = [dict(zip(keys, row, strict=True)) for row in zip(*conversation.values(), strict=True)]
    if not isinstance(conversation, (list, tuple)):
        raise BadRecord(f"conversations must be a list of turns, it is {shorten(conversation)}", "make it a list")
    if not conversation:
        raise BadRecord("its conversations are empty", "give it at least a question and an answer")
    if all(isinstance(one, Mapping) and {"user", "assistant"} <= one.keys() for one in conversation):
        # The Cauldron has a question and its answer in one object.
        return [{"role": role, "content": one[role]} for one in conversation for role in ("user", "assistant")]
    return conversation


def _pair(
    row: NamedRow, question: Any, answer: str | None, has_image: bool, prompts: Sequence[str], number: int
) -> Iterator[Turn]:
    """A question and its answer; without a question, the prompt of this record's number."""
    if question is None:
        if talk := row.columns.get("conversations"):
            raise BadRecord(f"its {talk!r} is empty", "give it at least a question and an answer")
        if answer is None:
            raise _without_text(row)
        if not has_image:
            raise BadRecord(
                "it has a text, but neither a picture nor a question",
                "add one of them; or where a column has it under another name, name that with columns.image or "
                "columns.question of this data source",
            )
        if IMAGE_PLACEHOLDER in answer:
            raise BadRecord(
                f"its {row.columns['answer']!r} has {IMAGE_PLACEHOLDER} in it, as a whole conversation has that was "
                f"written as one text ({shorten(answer)}), and all of it would be learned",
                "write question and answer apart, or the turns under `messages`; if it is a caption, take the mark out",
            )
        question = drawn(prompts, number)
    else:
        require_one_question(row.columns["question"], question, row.get("answer"))
    text = _text(question, 1, "human", row)
    more = row.get("input")
    if isinstance(more, str) and more.strip():
        text += f"\n{more}"
    yield Turn("human", clean(text))
    if answer is not None:
        yield Turn("gpt", answer)


def _without_text(row: NamedRow) -> BadRecord:
    if row.get("answer"):
        return BadRecord(
            f"its {row.columns['answer']!r} is no text, but {shorten(row.get('answer'))}",
            "write the answer as a text, or name another column with columns.answer of this data source",
        )
    if "answer" in row.columns:
        return BadRecord(f"its {row.columns['answer']!r} is empty", "write its text, or remove it")
    return BadRecord(
        f"it has no conversations and no text, but {', '.join(map(str, row.row))[:80] or 'nothing'}",
        "give it a list of turns, or question and answer, or say with `columns` which is which",
    )


def _history(row: NamedRow) -> Iterator[Turn]:
    history = row.get("history") or ()
    if not isinstance(history, (list, tuple)):
        raise BadRecord(f"its history is {shorten(history)}", "list pairs of a question and an answer")
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise BadRecord(f"its history has {shorten(pair)}", "list pairs of a question and an answer")
        refuse_marks(pair[0], 1, row.row)
        yield Turn("human", clean(pair[0]))
        yield Turn("gpt", clean(pair[1]))


def _turn(turn: Any, number: int, row: NamedRow) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"turn {number} must be an object, it is {shorten(turn)}", 'write {"from": …, "value": …}')
    usual = turn.keys() <= _USUAL  # most are, and a record is read in each epoch
    if not usual:
        refuse_media_in(turn, number)
        if called := next((key for key in _CALLS if turn.get(key)), None):
            raise BadRecord(f"turn {number} calls a tool ({called!r})", "tools aren't trained; take the record out")
    speaker = turn.get("from") if turn.get("from") is not None else turn.get("role")
    role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        what = "doesn't say who speaks" if speaker is None else f"is from {shorten(speaker)}"
        from_value = "from" in turn or ("role" not in turn and "value" in turn)
        mend = "from must be human, gpt or system" if from_value else "role must be user, assistant or system"
        raise BadRecord(f"turn {number} {what}", mend)
    value = turn.get("value") if turn.get("value") is not None else turn.get("content")
    first = len(row.pictures)
    text = _text(value, number, role, row)
    if usual:
        return Turn(role, clean(text))
    held = turn.get(filled_column(turn, PICTURES_OF_TURN, f"turn {number}") or "")
    # A number or a flag says how many there are, or that there is one.
    if own := [] if isinstance(held, (bool, int, float)) else list(images_of(held, row.image_dir)):
        _require_user(number, role)
        text = _with_own_pictures(text, own, first, number, row)
    return Turn(role, clean(text), role != "gpt" or is_learned(turn, number))


def _require_user(number: int, role: Role) -> None:
    if role != "human":
        raise BadRecord(f"turn {number} is no user's and has a picture", "move the picture to a user's turn")


def _with_own_pictures(text: str, own: list[ImageRef], first: int, number: int, row: NamedRow) -> str:
    """The text of a turn that has pictures of its own: they take its open places, or stand before it if it has none.

    Args:
        first: how many pictures the turns before have.
    """
    row.in_parts = True
    if len(row.pictures) == first:
        row.pictures += own
        return IMAGE_PLACEHOLDER * len(own) + (f"\n{text}" if text else "")
    places = [n for n in range(first, len(row.pictures)) if row.pictures[n] is None]
    if len(places) != len(own):
        raise BadPlaceholders(
            f"turn {number} has {number_of(len(own), 'picture')} of its own, and {number_of(len(places), 'place')} for "
            "them",
            f"write {IMAGE_PLACEHOLDER} once for each of them in its text, or leave it out altogether",
        )
    for n, picture in zip(places, own, strict=True):
        row.pictures[n] = picture
    return text


def _text(value: Any, number: int, role: Role, row: NamedRow) -> str:
    if isinstance(value, str):
        return _noted(value, number, role, row)
    if not isinstance(value, (list, tuple)):
        raise BadRecord(f"turn {number} has {shorten(value)} where its text belongs", "make it a string")
    out = ""
    for part in value:
        if isinstance(part, Mapping):
            refuse_media_in(part, number)
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if kind in _PICTURE_TYPES:
            _require_user(number, role)
            row.in_parts = True
            picture = picture_in(part)
            row.pictures.append(None if picture is None else image_at(picture, row.image_dir))
            out += IMAGE_PLACEHOLDER
        elif isinstance(text, str):
            if isinstance(part, Mapping) and any(is_filled(part.get(key)) for key in _PICTURE_TYPES):
                raise BadRecord(
                    f"turn {number} has a text and a picture in one part {shorten(part)}",
                    "write them as two parts, of type text and image",
                )
            # As LLaVA writes it: the image, a line break, then the text.
            gap = "\n" if out.endswith(IMAGE_PLACEHOLDER) and not text.startswith("\n") else ""
            out += gap + _noted(text, number, role, row)
        else:
            raise BadRecord(f"turn {number} has a part {shorten(part)}", "write parts of type text or image")
    return out


def _noted(text: str, number: int, role: Role, row: NamedRow) -> str:
    """The text, its placeholders counted: they are filled from the row's own pictures."""
    if role == "human":
        refuse_marks(text, number, row.row)
        row.pictures += [None] * text.count(IMAGE_PLACEHOLDER)
    return text


def picture_in(part: Mapping[str, Any]) -> Any:
    """What stands for the picture in a part of a turn; None where the part has none of its own."""
    if part.get("type") not in _PICTURE_TYPES:
        return None
    value = next((part[key] for key in _PICTURE_KEYS if part.get(key) is not None), None)
    value = value["url"] if isinstance(value, Mapping) and "url" in value else value
    return None if isinstance(value, str) and not value else value


def clean(text: str) -> str:
    """Text that every tokenizer takes: lone surrogates (JSON can hold half of a pair) become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
