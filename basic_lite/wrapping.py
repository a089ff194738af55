"""Lines broken between words, as wide as a terminal, and never inside a command.

A line end inside a command would be copied with it, and a shell would run two halves. A command that is wider than the
terminal stays one line: the terminal itself shows it in several, and hands it on as one. Where a sentence goes on
behind a command, the command stands in backticks: without them nothing tells where it ends.
"""

import re
import unicodedata

_COMMANDS = (
    "text-probe|demo|data|check|train|estimate|run|chat|inspect|report|export|runs|compare|clean|keys|doctor|eval"
)
_PROGRAMS = (
    rf"basic-lite (?:{_COMMANDS})|accelerate launch|hf (?:download|upload|auth)|pip install|python -[cm]|ollama create"
)
_QUOTED = r""""(?:[^"\\]|\\.)*"|'[^']*'"""
# A word of a command: in quotes or not, but for the stop that a sentence sets behind it. One with … can't be copied.
_WORD = rf"(?:{_QUOTED}|[^\s\"'`;,()…]|[;,](?=\S))+"
_COMMAND = re.compile(rf"(?<![\w-])(?:{_PROGRAMS})(?![\w-])(?: +(?:{_WORD}))*")
_TIED = "\x00"


def wrapped(text: str, width: int, hanging: str = "", *, fold: bool = False) -> list[str]:
    """The lines of a text, each as wide as ``width`` allows; a long word, path or command goes beyond it.

    Args:
        hanging: further indent of what a line is continued with.
        fold: break long words too, but no commands.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        for one in _broken(line, width, hanging):
            cut = width if fold and not _COMMAND.search(one) else max(len(one), 1)
            lines += [one[start : start + cut] for start in range(0, max(len(one), 1), cut)]
    return lines


def _broken(line: str, width: int, hanging: str) -> list[str]:
    if _columns(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip(" "))]
    tied = _COMMAND.sub(lambda command: command[0].replace(" ", _TIED), line.strip(" "))
    lines, current = [], indent
    for gap, word in re.findall(r"( *)([^ ]+)", tied):
        # A stop behind a command isn't part of it, and moves with it.
        if current.strip() and _columns(current + gap + word) > width:
            lines.append(current)
            current = indent + hanging + word
        else:
            current += gap + word
    return [one.replace(_TIED, " ") for one in (*lines, current)]


def _columns(text: str) -> int:
    """Columns that a terminal takes for a text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) != 0 for one in text)
