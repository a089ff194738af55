"""What is wrong with a recipe, and where it stands; values of a recipe, some of them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from basic_lite.printable import one_line, quoted

KeyPath = tuple[str, ...]
# The keys concerned (the first one present in the file gives the place), and the message.
Finding = tuple[Sequence[str], str]


class Wrong:
    """Stands in the place of a value that is missing or wrong and has been reported."""


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: 1-based line and column of a file; of an override line 0 and its number."""

    rank: int  # problems of the file come before those of overrides
    line: int
    column: int
    source: str

    @classmethod
    def in_file(cls, source: str, line: int, column: int) -> Place:
        return cls(0, line, column, source)

    @classmethod
    def of_override(cls, source: str, number: int) -> Place:
        return cls(1, 0, number, source)

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class RecipeProblem:
    """One thing wrong with a recipe: where, at which key (empty: no certain one), and what, with its fix."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {one_line(self.key)}: {self.message}" if self.key else f"{self.place}: {self.message}"


def plain(value: Any) -> str:
    """A value in plain words, for messages: "the text '3e-4 '", "the number 3", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {quoted(value)}"
    if isinstance(value, str):
        return f"the text {quoted(value, 300)}" if value else "an empty text"
    if isinstance(value, dict):
        return (
            f"keys ({one_line(', '.join(map(str, list(value)[:3])))}{', ...' if len(value) > 3 else ''})"
            if value
            else "no keys"
        )
    return "a list" if value else "an empty list"


class Unusable(Exception):
    """A key was looked up whose value is missing or wrong, which has been reported already."""


class Values:
    """Dotted look-up in nested checked values: ``values["training.micro_batch"]``.

    Raises:
        Unusable: on look-up of a key whose value is wrong, or whose section is.
    """

    def __init__(self, checked: dict[str, Any]) -> None:
        self._checked = checked

    def __getitem__(self, dotted: str) -> Any:
        value: Any = self._checked
        for part in dotted.split("."):
            if isinstance(value, Wrong):
                raise Unusable
            value = value[int(part)] if isinstance(value, list) else value[part]
        if isinstance(value, Wrong):
            raise Unusable
        return value

    def get(self, dotted: str) -> Any:
        """The value, or :class:`Wrong` where it is wrong: for a check that continues without it."""
        try:
            return self[dotted]
        except Unusable:
            return Wrong()
