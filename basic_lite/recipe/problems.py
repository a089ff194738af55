"""What is wrong with a recipe, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str, ...]


class Wrong:
    """Stands in the place of a value that is missing or wrong and has been reported."""


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: 1-based line and column of a file; ``line == 0`` is the command line."""

    rank: int
    line: int
    column: int
    source: str

    @classmethod
    def in_file(cls, source: str, line: int, column: int) -> Place:
        return cls(0, line, column, source)

    @classmethod
    def on_command_line(cls, number: int) -> Place:
        return cls(1, 0, number, "command line")

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class RecipeProblem:
    """One thing wrong with a recipe: where, at which key (empty: no certain one), and what, with its mend."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"


def plain(value: Any) -> str:
    """A value in plain words, for messages: "the text '3e-4 '", "the number 3", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if value else "an empty text"
    if isinstance(value, dict):
        return (
            f"keys ({', '.join(map(str, list(value)[:3]))}{', ...' if len(value) > 3 else ''})" if value else "no keys"
        )
    return "a list" if value else "an empty list"
