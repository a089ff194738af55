"""Records: one conversation with its images, whatever file or data set it came from.

``Records`` reads a record when it is asked for. It holds only offsets into a JSON file, or a memory-mapped Arrow table,
so 665k records cost a few MB.
"""

import bisect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadRecord, RecordProblem, shorten

Role = Literal["human", "gpt", "system"]

IMAGE_PLACEHOLDER = "<image>"

_ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "model": "gpt",
    "system": "system",
}

# Our column names, each with the keys it is looked up under when the recipe maps nothing.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "image": ("image", "images"),
    "conversations": ("conversations", "conversation", "messages"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "question_type": ("question_type",),
}


@dataclass(frozen=True)
class Turn:
    """One turn as the record has it; in a human turn `<image>` stands where an image goes."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        number: 1-based position within its source.
        id: As in the record, as text; empty when it has none.
        source: File or data set, as the recipe names it.
        images: In the order of their placeholders.
        turns: In the order of the record; odd orders are put right by ``chat``, not here.
        question_type: For evaluation by type.
        answer: A reference answer outside the conversation.
    """

    number: int
    id: str
    source: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    question_type: str | None = None
    answer: str | None = None

    @property
    def place(self) -> str:
        """How messages name this record."""
        return place(self.source, self.number, self.id)


def place(source: str, number: int, identity: str = "") -> str:
    """How messages name a record."""
    return f"{source}, record {number}" + (f" (id {identity})" if identity else "")


class Source(Protocol):
    """Rows of one data source, read one at a time."""

    name: str
    columns: dict[str, str]
    image_dir: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any: ...


class Records(Sequence[Record]):
    """All records of one or more sources, one after the other. Picklable; reading is lazy.

    ``records[i]`` raises `RecordProblem` where the i-th isn't a usable conversation.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> str:
        """Source and record number of a record that may not be readable."""
        source, number = self._find(index)
        return place(source.name, number)

    def _find(self, index: int) -> tuple[Source, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        which = bisect.bisect_right(self._ends, index)
        return self.sources[which], index - (self._ends[which - 1] if which else 0) + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, number = self._find(index)
        try:
            row = source.row(number - 1)
        except BadRecord as problem:
            raise problem.at(place(source.name, number)) from None
        return record_of(row, source, number)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def record_of(row: Any, source: Source, number: int) -> Record:
    """A row of a source as a record.

    Raises:
        RecordProblem: it is no conversation; names the place.
    """
    identity = ""
    try:
        if not isinstance(row, Mapping):
            raise BadRecord(f"a record must be an object, this is {shorten(row)}", "give it id, image, conversations")
        raw_id = _value(row, source.columns, "id")
        identity = "" if raw_id is None else str(raw_id)
        question_type = _value(row, source.columns, "question_type")
        answer = _answer(_value(row, source.columns, "answer"))
        return Record(
            number=number,
            id=identity,
            source=source.name,
            images=tuple(_images(_value(row, source.columns, "image"), source.image_dir)),
            turns=_turns(row, source.columns, answer),
            question_type=None if question_type is None else str(question_type),
            answer=answer,
        )
    except RecordProblem as problem:
        raise problem.at(place(source.name, number, identity)) from None


def _value(row: Mapping[str, Any], columns: Mapping[str, str], ours: str) -> Any:
    names = (columns[ours],) if ours in columns else COLUMNS[ours]
    return next((row[name] for name in names if row.get(name) is not None), None)


def _answer(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        # VQA lists the answers of several people; the first stands for them.
        value = next((one for one in value if isinstance(one, str) and one.strip()), None)
    return None if value is None else clean(str(value))


def _turns(row: Mapping[str, Any], columns: Mapping[str, str], answer: str | None) -> tuple[Turn, ...]:
    conversation = _value(row, columns, "conversations")
    if isinstance(conversation, str):
        try:
            conversation = json.loads(conversation)
        except ValueError as error:
            raise BadRecord("conversations is text that isn't JSON", "make it a list of turns") from error
    if isinstance(conversation, Mapping) and all(isinstance(v, (list, tuple)) for v in conversation.values()):
        # How older `datasets` store a list of objects: an object of lists.
        keys = list(conversation)
        conversation = [dict(zip(keys, row, strict=True)) for row in zip(*conversation.values(), strict=True)]
    if conversation is None:
        question = _value(row, columns, "question")
        if question is None:
            raise BadRecord("it has no conversations", "give it a list of turns, or question and answer")
        human = Turn("human", clean(_text(question, 1)))
        return (human,) if answer is None else (human, Turn("gpt", answer))
    if not isinstance(conversation, (list, tuple)):
        raise BadRecord(f"conversations must be a list of turns, it is {shorten(conversation)}", "make it a list")
    if not conversation:
        raise BadRecord("its conversations are empty", "give it at least one human and one gpt turn")
    return tuple(_turn(turn, n) for n, turn in enumerate(conversation, 1))


def _turn(turn: Any, number: int) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"turn {number} must be an object, it is {shorten(turn)}", 'write {"from": …, "value": …}')
    speaker = turn.get("from") if turn.get("from") is not None else turn.get("role")
    role = _ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        what = "doesn't say who speaks" if speaker is None else f"is from {shorten(speaker)}"
        raise BadRecord(f"turn {number} {what}", "from must be human, gpt or system (role: user, assistant, system)")
    value = turn.get("value") if turn.get("value") is not None else turn.get("content")
    return Turn(role, clean(_text(value, number)))


def _text(value: Any, number: int) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)):
        raise BadRecord(f"turn {number} has {shorten(value)} where its text belongs", "make it a string")
    out = ""
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            out += IMAGE_PLACEHOLDER
        elif isinstance(text, str):
            # As LLaVA writes it: the image, a line break, then the text.
            gap = "\n" if out.endswith(IMAGE_PLACEHOLDER) and not text.startswith("\n") else ""
            out += gap + text
        else:
            raise BadRecord(f"turn {number} has a part {shorten(part)}", "parts are of type text or image")
    return out


def _images(value: Any, image_dir: str) -> Iterator[ImageRef]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return
    if isinstance(value, (list, tuple)):
        for n, one in enumerate(value, 1):
            if one is None or isinstance(one, (list, tuple)):
                raise BadRecord(f"image {n} of its list is {shorten(one)}", "list paths")
            yield from _images(one, image_dir)
    elif isinstance(value, str):
        yield ImageRef(value, image_dir)
    elif isinstance(value, bytes) or hasattr(value, "as_py"):
        yield ImageRef("(image column)", blob=value)
    elif isinstance(value, Mapping) and (value.get("bytes") is not None or isinstance(value.get("path"), str)):
        name, blob = value.get("path"), value.get("bytes")
        known = name if isinstance(name, str) and name else "(image column)"
        yield ImageRef(known, image_dir if blob is None else "", blob)
    else:
        raise BadRecord(f"its image is {shorten(value)}", "image must be a path, a list of paths, or null")


def clean(text: str) -> str:
    """Text that every tokenizer takes: lone surrogates (JSON can hold half of a pair) become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
