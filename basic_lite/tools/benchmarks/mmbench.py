"""MMBench (open-compass): a table with tabs, its pictures in it as base64.

Each question is asked once for each of its options, which move on by one each time, and it is right only if it is right
each time: CircularEval, Liu et al. (2023), arXiv 2307.06281.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadImage, BadRecord, shorten
from basic_lite.tools.benchmarks.form import LETTER, Benchmark, Published, Row, placed, text_in

# From here on, a published file's rows are rotations of others, and ours take their place.
_ROTATED = 1_000_000
# What an empty cell is; "None" is a text, as an option's may be.
_NOTHING = ("", "nan")


def _is_its(file: Published) -> bool:
    return file.path.suffix.lower() == ".tsv" and {"index", "question", "A", "B", "image"} <= (file.first or {}).keys()


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    pictures: dict[str, ImageRef] = {}
    for place, row in file.table():
        with placed(place):
            index = text_in(row, "index")
            if index.isdigit() and int(index) >= _ROTATED:
                continue
            pictures[index] = _picture(row, index, pictures)
            one = _row(row, index, pictures[index])
        yield place, one


def _row(row: Mapping[str, Any], index: str, picture: ImageRef) -> Row:
    options = {letter: row[letter] for letter in ascii_uppercase if _there(row, letter)}
    answer = row["answer"].strip() if _there(row, "answer") else None
    # Two options that say the same stay, as in VLMEvalKit: the letter alone is right.
    if len(options) < 2:
        raise BadRecord(f"its options are {shorten(list(options.values()))}", "fetch the file again")
    if answer is not None and answer not in options:
        raise BadRecord(f"its answer is {shorten(answer)}, none of its options", "fetch the file again")
    return Row(
        id=index,
        text=f"{row['hint']}\n{text_in(row, 'question')}" if _there(row, "hint") else text_in(row, "question"),
        image=picture,
        answers=(),
        question_type=row["category"] if _there(row, "category") else None,
        groups=(row["l2-category"],) if _there(row, "l2-category") else (),
        options=tuple(options.values()),
        right=None if answer is None else list(options).index(answer),
    )


def _there(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, str) and value.strip().lower() not in _NOTHING


def _picture(row: Mapping[str, Any], index: str, before: Mapping[str, ImageRef]) -> ImageRef:
    text = text_in(row, "image")
    if text in before:  # the index of an earlier row with the same picture
        return before[text]
    try:
        return ImageRef(f"(picture of {index})", blob=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"its picture is no base64 ({error})", "fetch the file again") from error


MMBENCH = Benchmark("mmbench", "choice", LETTER, _is_its, _rows, circular=True)
