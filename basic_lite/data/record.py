"""One conversation with its images, whatever file or data set it came from."""

from dataclasses import dataclass
from typing import Literal

from basic_lite.data.images import ImageRef
from basic_lite.printable import one_line

Role = Literal["human", "gpt", "system"]

IMAGE_PLACEHOLDER = "<image>"


# How data names who speaks, in small letters.
ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "model": "gpt",
    "bot": "gpt",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class Turn:
    """One turn as the record has it; in a human turn `<image>` stands where an image goes.

    An answer that isn't ``learned`` is read by the model as a question is: its tokens have no labels.
    """

    role: Role
    text: str
    learned: bool = True


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
        at: How the source names this record's place, where it isn't by its number: a line, a picture.
    """

    number: int
    id: str
    source: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    question_type: str | None = None
    answer: str | None = None
    at: str = ""

    @property
    def place(self) -> str:
        """How messages name this record."""
        return named(self.at or numbered(self.source, self.number), self.id)


def numbered(source: str, number: int) -> str:
    """The place of a record in a source that has nothing better than its number."""
    return f"{source}, record {number}"


def named(place: str, identity: str) -> str:
    """A place with the record's own id."""
    place = one_line(place)
    return f"{place} (id {one_line(identity, 80)})" if identity else place
