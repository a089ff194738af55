"""Why a text is no YAML, in plain words.

ruamel.yaml says what its grammar expected, and where it noticed. A person wants to know which line to change: that
line, or one a little above it. A few usual slips are mended on trial; the one without which the text reads is told.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

# One of so many lines above has the slip, and what stands a few lines below must fit. To find it the text is read again
# up to thirty times; of a long one only the likeliest mends are tried, since 100,000 characters take a second.
_BACK, _ON, _MOST_READ = 4, 8, 200_000
_KEY = r"\s*(?:- )?([A-Za-z_][\w.-]*)"
_COLON_IN_VALUE = re.compile(rf"{_KEY}:\s+[^\s'\"\[{{#]")
_BLOCK_TEXT = re.compile(rf"{_KEY}:\s+[|>][-+\d]*\s*(?:#.*)?")
# What a line may lack, what it would be with that, and how to say it of a key.
_LACKS = (
    (re.compile(rf"{_KEY}:(?=[^\s:/\\])"), ": ", "has no space after `{}:`; add one"),
    (re.compile(rf"{_KEY}(?=\s|$)"), ":", "has no colon after `{}`; add one"),
)
# Of a backslash in double quotes, what it does and what mends it.
BACKSLASH = "where YAML reads \\n as a line break and \\t as a tab; write / instead, or put the text in single quotes"
_ALIKE = "indent the keys of one section alike"
# The grammar's complaint → ours. {line} and {sign}: where what it was reading begins.
_SAYS = {
    "scanning a quoted scalar": "the quote that opens on line {line} isn't closed; close it",
    "parsing a flow (?:mapping|sequence)": "the bracket `{sign}` that opens on line {line} isn't closed; close it, "
    "and put commas between values",
    r"character '\\t'": "there is a tab where spaces belong; use spaces",
    "character (.+) that cannot start any token": "no value may begin with {0}; put it in quotes",
    "undefined alias '(.*)'": "*{0} is an undefined alias; put a text that begins with * in quotes",
    r"but found '([\]},])'": "nothing that `{0}` could belong to is open; remove it, or put the text in quotes",
    "<scalar>": "text follows a value that is complete; put the whole value in quotes",
    "another document": "a second document begins with `---`; a file holds one recipe; remove this line",
    "not allowed here|<block end>|could not find expected ':'": "this doesn't fit to the lines before it; write "
    f"`key: value`, and {_ALIKE}",
    "(?s)(.*)": "YAML's own words are: {0}; correct it there",
}


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
    mark, opened = error.problem_mark, error.context_mark or error.problem_mark
    lines = text.splitlines()
    if "escape" in (error.problem or ""):
        return mark.line + 1, mark.column + 1, f"it has a backslash in double quotes, {BACKSLASH}"
    if blank := _odd_blank(lines, mark.line):
        return blank
    if slip := _slip(lines, min(mark.line, len(lines) - 1), mark.column):
        line, says = slip
        return line + 1, _column(lines[line]) + 1, says
    said = " ".join(filter(None, (error.context, error.problem)))
    says, match = next((says, match) for words, says in _SAYS.items() if (match := re.search(words, said)))
    sign = text[opened.index : opened.index + 1]
    return mark.line + 1, mark.column + 1, says.format(*match.groups(), line=opened.line + 1, sign=sign)


def _odd_blank(lines: list[str], at: int) -> tuple[int, int, str] | None:
    """The first line up to one below ``at`` that is indented by another blank than a space or a tab."""
    for number, line in enumerate(lines[: at + 2]):
        blank = line[: _column(line)]
        if sign := blank.strip(" \t")[:1]:
            return number + 1, blank.index(sign) + 1, f"line {number + 1} {indented_by(sign)}"
    return None


def indented_by(sign: str) -> str:
    """What is wrong with a line that begins with a blank which YAML takes for a letter."""
    name = unicodedata.name(sign, "control character").lower()
    return f"is indented by a {name} (U+{ord(sign):04X}), as pages of the web have it; indent by plain spaces alone"


def _slip(lines: list[str], at: int, column: int) -> tuple[int, str] | None:
    """The line (from 0) of a usual slip that was noticed at ``at`` and ``column``, and what to say of it."""
    if lines[at][column : _column(lines[at])].startswith("\t"):
        return at, f"line {at + 1} is indented by a tab; indent by spaces alone"
    if match := _COLON_IN_VALUE.match(lines[at][:column]):
        return at, f"the value of `{match[1]}` has a colon in it on line {at + 1}; put the value in quotes"
    if found := _outside_its_text(lines, at):
        return found
    filled = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    near = [number for number in filled if number <= at][-_BACK:]
    kept = set(filled)
    lines = [line if number in kept else "" for number, line in enumerate(lines[: at + _ON])]
    if not near:
        return None
    tries = iter(range(_MOST_READ // max(1, sum(map(len, lines)))))
    for number, (lack, mend, says) in itertools.product(reversed(near), _LACKS):
        if match := lack.match(lines[number]):
            mended = f"{match[0].rstrip(':')}{mend}{lines[number][match.end() :]}"
            if _reads([*lines[:number], mended, *lines[number + 1 :]], tries):
                return number, f"line {number + 1} {says.format(match[1])}"
    return _wrong_indent(lines, near, tries)


def _column(line: str) -> int:
    return len(line) - len(line.lstrip())


def _key_column(line: str) -> int:
    """The same; of an entry of a list, how far its first key is."""
    return len(line) - len(re.sub(r"\s*(- +(?=\S))?", "", line, count=1))


def _outside_its_text(lines: list[str], at: int) -> tuple[int, str] | None:
    """The first line of a block text (behind `|` or `>`) that is indented less than the text; None: there is none."""
    head = next((number for number in range(at, -1, -1) if _BLOCK_TEXT.fullmatch(lines[number])), at)
    key, text = _key_column(lines[head]), [number for number in range(head + 1, at + 1) if lines[number].strip()]
    for number in text:
        line, column = lines[number].lstrip(), _column(lines[number])
        if column >= max(_column(lines[text[0]]), key + 1) or line.startswith("#"):
            continue
        # Where a key may stand, what looks like one ends the text.
        if column <= key and (":" in line or line.startswith("-")):
            return None
        says = _indented(lines, [number], [head if number == text[0] else text[0]])
        return number, f"{says}; indent all lines of a text alike, and further than its key"
    return None


def _wrong_indent(lines: list[str], near: list[int], tries: Iterator[int]) -> tuple[int, str] | None:
    """The line that must be indented as others are, alone or with those below that are like it; the likeliest first."""
    filled = [number for number, line in enumerate(lines) if line]
    columns = {column(lines[number]) for number in filled if number >= near[0] for column in (_column, _key_column)}
    found = []
    for first in near:
        own, later = _column(lines[first]), filled[filled.index(first) :]
        run = later[: next((at for at, number in enumerate(later) if _column(lines[number]) != own), None)]
        alike = sum(_column(lines[number]) == own for number in filled)
        for block, wanted in itertools.product(([first], run), columns - {own}):
            moved = [" " * wanted + line.lstrip() if number in block else line for number, line in enumerate(lines)]
            found.append(((_empty_sections(moved), len(block), alike), block, moved))
    for _, block, moved in sorted(found, key=lambda one: one[0]):
        if _reads(moved, tries):
            own, opens = _column(lines[block[0]]), _opens(lines[block[-1]])
            above = [number for number in filled if number < block[0]][-1:]
            # What is in a section says nothing about its name.
            below = [number for number in filled if number > block[-1] and not (opens and _column(lines[number]) > own)]
            beside = [*(number for number in above if not _opens(lines[number])), *below[:1]]
            # A line that stands as its neighbours do has another slip.
            if beside and all(_key_column(lines[number]) == own for number in beside):
                continue
            return block[0], f"{_indented(lines, block, beside)}; {_ALIKE}"
    return None


def _reads(lines: list[str], tries: Iterator[int]) -> bool:
    """Whether lines are YAML; no where there are no tries left."""
    if next(tries, None) is None:
        return False
    try:
        YAML(typ="safe", pure=True).compose("\n".join(lines))
    except (YAMLError, RecursionError):
        return False
    return True


def _opens(line: str) -> bool:
    """Whether keys are to follow, further in."""
    return re.sub(r"\s+#.*", "", line).rstrip().endswith(":")


def _empty_sections(lines: list[str]) -> int:
    pairs = itertools.pairwise(filter(None, lines))
    return sum(_opens(line) and _column(later) <= _column(line) for line, later in pairs)


def _indented(lines: list[str], block: list[int], beside: list[int]) -> str:
    """How far the lines of a block are indented, and how far their neighbours are."""
    which = f"line {block[0] + 1} is" if len(block) == 1 else f"lines {block[0] + 1} to {block[-1] + 1} are"
    own, columns = _column(lines[block[0]]), [_key_column(lines[number]) for number in beside]
    sides = [f"line {number + 1} by {column}" for number, column in zip(beside, columns, strict=True)]
    if len(sides) == 2 and columns[0] == columns[1]:
        sides = [f"the lines beside {'it' if len(block) == 1 else 'them'} by {columns[0]}"]
    return ", ".join([f"{which} indented by {own} space" + "s" * (own != 1), *sides])
