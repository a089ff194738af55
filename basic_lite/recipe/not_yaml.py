"""Why a text is no YAML, in plain words.

ruamel.yaml says what its grammar expected. A person wants to know which line to change. So a few usual slips are tried:
the one without which the text could be read is the likely cause.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from basic_lite.printable import quoted

# A longer text isn't read again for each slip that is tried: some 100,000 characters are read in a second.
_MOST_TRIED = 20_000
# A slip is noticed where it stands, or a few lines further down; lines after it must fit as well.
_BACK, _ON = 4, 8
_KEY = r"[A-Za-z_][\w.-]*"
_NO_SPACE = re.compile(rf"(\s*(?:- )?{_KEY}):(?=[^\s:/\\])")
_NO_COLON = re.compile(rf"\s*({_KEY})\s*(#.*)?")
_COLON_IN_VALUE = re.compile(rf"(\s*(?:- )?({_KEY}):\s+)([^\s'\"\[{{#].*?)(\s+#.*)?")
_ALIKE = "indent the keys of one section alike"


@dataclass(frozen=True)
class _Slip:
    """What may be wrong: the first line with it (from 0), what the lines would be without it, and how to say it."""

    line: int
    mended: list[str]
    says: str


def why_not_yaml(error: YAMLError, text: str) -> tuple[int, int, str]:
    """The line and the column of what has to be changed (from 1), and a sentence.

    Args:
        error: what ruamel.yaml raised when it read ``text``.
    """
    if not isinstance(error, MarkedYAMLError):
        # A character that YAML doesn't allow: the reader knows its position in the text, not its line.
        position = getattr(error, "position", 0)
        line, column = text[:position].count("\n") + 1, position - text.rfind("\n", 0, position)
        return line, column, f"{getattr(error, 'reason', None) or error}; remove this character"
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    lines = [_without_comment_line(one) for one in text.splitlines()]
    if len(text) <= _MOST_TRIED:
        for slip in _slips(lines, min(line, len(lines) - 1)):
            if _reads(slip.mended[: line + _ON]):
                return slip.line + 1, len(_start(lines[slip.line])) + 1, slip.says
    opened = error.context_mark.line + 1 if error.context_mark is not None else line + 1
    return line + 1, column + 1, _in_plain_words(str(error.context or ""), str(error.problem or ""), opened)


def _start(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _without_comment_line(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line


def _reads(lines: list[str]) -> bool:
    try:
        YAML(typ="safe", pure=True).compose("\n".join(lines))
    except (YAMLError, RecursionError):
        return False
    return True


def _slips(lines: list[str], at: int) -> Iterator[_Slip]:
    """What may be wrong near line ``at``, the most certain first."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    near = [number for number in filled if number <= at][-_BACK:]
    for number in reversed(near):
        yield from _in_line(lines, number)
    yield from _indents(lines, filled, near)


def _in_line(lines: list[str], number: int) -> Iterator[_Slip]:
    line, name = lines[number], f"line {number + 1}"

    def slip(mended: str, says: str) -> _Slip:
        return _Slip(number, [*lines[:number], mended, *lines[number + 1 :]], says)

    if "\t" in _start(line):
        # Taken for the cause only where spaces mend it; how many a tab stands for, no one can tell.
        for spaces in ("  ", "    ", ""):
            mended = [_start(one).replace("\t", spaces) + one.lstrip() for one in lines]
            yield _Slip(number, mended, f"{name} is indented by a tab; indent by spaces alone")
    if match := _NO_SPACE.match(line):
        key = match[1].strip().removeprefix("- ")
        yield slip(f"{match[1]}: {line[match.end() :]}", f"{name} has no space after `{key}:`; add one")
    if match := _NO_COLON.fullmatch(line):
        yield slip(f"{line[: match.end(1)]}:", f"{name} has no colon after `{match[1]}`; add one")
    if (match := _COLON_IN_VALUE.fullmatch(line)) and ": " in match[3] + " ":
        says = f"the value of `{match[2]}` has a colon in it on {name}; put the value in quotes"
        yield slip(f"{match[1]}'{match[3].replace(chr(39), 2 * chr(39))}'", says)


def _indents(lines: list[str], filled: list[int], near: list[int]) -> Iterator[_Slip]:
    """Lines that are indented otherwise than those beside them, the likeliest first."""
    found: list[tuple[tuple[int, ...], _Slip]] = []
    for first in near:
        own = _columns(lines[first])[0]
        for block in _blocks(lines, filled, first):
            above, below = [one for one in reversed(filled) if one < first], [one for one in filled if one > block[-1]]
            beside = []
            for side in (above, below):
                outer = [one for one in side if _columns(lines[one])[0] < _columns(lines[side[0]])[0]]
                beside += [*side[:1], *outer[:1]]
            for wanted in sorted({column for one in beside for column in _columns(lines[one])} - {own}):
                mended = list(lines)
                for one in block:
                    mended[one] = " " * max(_columns(lines[one])[0] + wanted - own, 0) + lines[one].lstrip()
                rank = (
                    _empty_sections(mended),
                    # The name of a section stands at the margin: nothing is wrong with it.
                    own == 0 and _opens(lines[first]),
                    len(block) - 1 - _agreement(lines, block, above, below, wanted),
                    abs(wanted - own),
                    sum(_columns(lines[one])[0] == own for one in filled),
                    first,
                )
                found.append((rank, _Slip(first, mended, _indented(lines, block, above, below))))
    yield from (slip for _, slip in sorted(found, key=lambda one: one[0]))


def _agreement(lines: list[str], block: list[int], above: list[int], below: list[int], wanted: int) -> int:
    """How well the lines beside a block speak for ``wanted``; one behind an empty line says less.

    Beside the name of a section stand other names of sections, not what is in them.
    """
    score = 0
    for side, edge in ((above, block[0]), (below, block[-1])):
        if _opens(lines[edge]):
            side = [one for one in side if _columns(lines[one])[0] <= wanted]
        if side and wanted in _columns(lines[side[0]]):
            between = lines[min(side[0], edge) + 1 : max(side[0], edge)]
            score += 1 if any(not line.strip() for line in between) else 2
    return score


def _opens(line: str) -> bool:
    """Whether keys are to follow, further in."""
    return re.sub(r"\s+#.*", "", line).rstrip().endswith(":")


def _empty_sections(lines: list[str]) -> int:
    filled = [line for line in lines if line.strip()]
    pairs = itertools.pairwise(filled)
    return sum(_opens(line) and _columns(later)[0] <= _columns(line)[0] for line, later in pairs)


def _indented(lines: list[str], block: list[int], above: list[int], below: list[int]) -> str:
    """How far the lines of a block are indented, and how far their neighbours are."""
    several = len(block) > 1
    it = "them" if several else "it"
    if _opens(lines[block[-1]]):
        below = [one for one in below if _columns(lines[one])[0] < _columns(lines[below[0]])[0]]
    sides = {}
    if above and not _opens(lines[above[0]]):
        sides[f"line {above[0] + 1}"] = _columns(lines[above[0]])[-1]
    if below:
        sides[f"line {below[0] + 1}"] = _columns(lines[below[0]])[0]
    if len(sides) == 2 and len(set(sides.values())) == 1:
        sides = {f"the lines beside {it}": next(iter(sides.values()))}
    which = f"lines {block[0] + 1} to {block[-1] + 1} are" if several else f"line {block[0] + 1} is"
    own = _columns(lines[block[0]])[0]
    by = f"{which} indented by {own} space" + "s" * (own != 1)
    return "; ".join([", ".join([by, *(f"{name} by {columns}" for name, columns in sides.items())]), _ALIKE])


def _blocks(lines: list[str], filled: list[int], first: int) -> list[list[int]]:
    """The line alone; with what is further in below it; with all below it that is no further out."""
    own, later = _columns(lines[first])[0], [one for one in filled if one > first]
    deeper, inner = [first], [first]
    for one in later:
        if _columns(lines[one])[0] <= own:
            break
        deeper.append(one)
    for one in later:
        if _columns(lines[one])[0] < own:
            break
        inner.append(one)
    return [list(block) for block in dict.fromkeys(map(tuple, ([first], deeper, inner)))]


def _columns(line: str) -> list[int]:
    """How far a line is indented; of an entry of a list also, how far its first key is."""
    own = len(_start(line))
    dash = re.match(r"- +(?=\S)", line[own:])
    return [own, own + dash.end()] if dash else [own]


def _in_plain_words(context: str, problem: str, opened: int) -> str:
    """The grammar's complaint in a sentence; ``opened``: the line of what it was reading."""
    if context == "while scanning a quoted scalar":
        return f"the quote that opens on line {opened} isn't closed; close it"
    if context.startswith("while parsing a flow"):
        bracket = "{" if "mapping" in context else "["
        return (
            f"the bracket `{bracket}` that opens on line {opened} isn't closed; close it, and put commas between values"
        )
    if match := re.match(r"found character '(.+)' that cannot start any token", problem):
        if match[1] == r"\t":
            return "there is a tab where spaces belong; use spaces"
        return f"no value may begin with {quoted(match[1])}; put it in quotes"
    if match := re.match(r"found undefined alias '(.*)'", problem):
        return f"*{match[1]} is an undefined alias; put a text that begins with * in quotes"
    if match := re.search(r"but found '([\]},])'", problem):
        return f"nothing that `{match[1]}` could belong to is open; remove it, or put the text in quotes"
    if "<scalar>" in problem:
        return "text follows a value that is complete; put the whole value in quotes"
    if "another document" in problem:
        return "a second document begins with `---`; a file holds one recipe, so remove this line"
    if "not allowed here" in problem or "<block end>" in problem or "could not find expected ':'" in problem:
        return f"this doesn't fit to the lines before it; write `key: value`, and {_ALIKE}"
    return f"YAML's own words are: {' '.join(filter(None, [context, problem]))}; correct it there"
