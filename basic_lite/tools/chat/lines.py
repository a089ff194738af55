"""An answer that comes piece by piece, with lines that break between words."""

import re

from rich.cells import cell_len

from basic_lite.unspaced import UNSPACED

# A line may break at each character of a script that is written without spaces.
_UNITS = re.compile(rf"\n|[^\S\n]+|[{UNSPACED}-\U0010ffff]|[^\s{UNSPACED}-\U0010ffff]+")


class Lines:
    """Takes the pieces of an answer, none of which ends inside a word, and gives what to print of each.

    A word that is longer than a line is left to the terminal.

    Args:
        width: columns of the terminal; None: lines are as long as they are.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._column = 0
        self._space = ""  # not printed yet: a line may end here

    def take(self, piece: str) -> str:
        """The piece with lines broken, without the space at its end: that comes with the next word."""
        return piece if self._width is None else "".join(map(self._unit, _UNITS.findall(piece)))

    def _unit(self, text: str) -> str:
        if text == "\n":
            self._column, self._space = 0, ""
            return text
        if text.isspace():
            self._space += text
            return ""
        assert self._width is not None
        space, self._space = self._space, ""
        after = self._column + cell_len(space + text)
        if self._column and after > self._width:
            self._column = cell_len(text)
            return "\n" + text
        self._column = after
        return space + text
