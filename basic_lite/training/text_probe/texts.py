"""The texts of the probe: passages, and questions with one right continuation. All were written for this project.

Both have a ``given`` part that is read and not scored: the first word of a passage, the beginning of a question. So
every tokenizer scores the same bytes, whether or not it puts a token before a text.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

PASSAGES, QUESTIONS = "passages.json", "questions.json"


@dataclass(frozen=True)
class Passage:
    """A text that is scored in bits per byte.

    Attributes:
        kind: what it is, such as a story or code.
        text: what follows ``given``, and is scored.
    """

    kind: str
    given: str
    text: str


@dataclass(frozen=True)
class Question:
    """A beginning with one right continuation and some wrong ones.

    The order in the file means nothing: the right one has to be likelier than each of the others.
    """

    kind: str
    given: str
    right: str
    wrong: tuple[str, ...]

    @property
    def continuations(self) -> tuple[str, ...]:
        """All of them, the right one first."""
        return self.right, *self.wrong


def passages() -> list[Passage]:
    """The passages, in the order of the file."""
    return [Passage(**row) for row in _rows(PASSAGES)]


def questions() -> list[Question]:
    """The questions, in the order of the file."""
    return [Question(**{**row, "wrong": tuple(row["wrong"])}) for row in _rows(QUESTIONS)]


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
    return rows
