"""Text of data, models and command lines, made fit to print: no commands to a terminal, no endless lines."""

import re

# Characters of a message to the user.
MOST = 2_000
# Of one word in a message that is too long, and of one of its lines.
_MOST_OF_WORD, _MOST_OF_LINE = 300, 700
# What a terminal takes for a command or no encoding holds: control characters but tab and line break, marks that turn
# the direction of writing, other line breaks, halves of surrogate pairs.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with what isn't fit to print written out, as in \x1b; line breaks stay."""
    return _UNFIT.sub(_written_out, text.replace("\r\n", "\n"))


def one_line(text: str, most: int = _MOST_OF_WORD) -> str:
    """The same in one line of at most ``most`` characters: the middle of a longer text is left out."""
    return _shortened(printable(_shortened(text, 4 * most)).replace("\n", "\\n"), most)


def quoted(value: object, most: int = 160) -> str:
    """``repr`` of a value, short enough for a message; its kind alone where Python can't write it."""
    try:
        return one_line(repr(value), most)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return f"({type(value).__name__})"


def message(text: str, limit: int = MOST) -> str:
    """A message of at most ``limit`` characters. It keeps its beginning (the place) and its last line (what to do)."""
    text = printable(text if len(text) < 50 * limit else _shortened(text, 50 * limit))
    if len(text) <= limit:
        return text
    text = re.sub(rf"\S{{{_MOST_OF_WORD + 1},}}", lambda word: _shortened(word[0], _MOST_OF_WORD), text)
    *lines, last = [_shortened(line, _MOST_OF_LINE) for line in text.split("\n")]
    room, kept = limit - len(last) - 40, 0
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept += 1
    left_out = [f"  … ({len(lines) - kept:,} lines left out)"] if kept < len(lines) else []
    return "\n".join([*lines[:kept], *left_out, last])


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
