"""Checked values of a recipe, looked up by dotted key, some of them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from basic_lite.recipe.problems import Wrong

# The keys concerned (the first one present in the file gives the place), and the message.
Finding = tuple[Sequence[str], str]


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
        """The value, or :class:`Wrong` where it is wrong: for a check that goes on without it."""
        try:
            return self[dotted]
        except Unusable:
            return Wrong()
