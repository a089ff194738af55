"""ScienceQA (lupantech/ScienceQA): its `problems.json`, or the list that LLaVA makes of it.

Of several splits the test split is asked. Accuracy is given by what `evaluate_acc.py` has: subject, whether there is a
picture or a text besides the question, and grades.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from basic_lite.data.problems import BadRecord, shorten
from basic_lite.data.turns import NamedRow, read_row
from basic_lite.tools.benchmarks.form import LETTER, Benchmark, Published, Row, placed, text_in, texts_in

_PICTURE = "with picture"


def _is_its(file: Published) -> bool:
    return file.holds({"question", "choices", "answer", "subject"})


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    return _of_llava(file) if file.top is None else _of_problems(file.top, file.name)


def _of_problems(top: Mapping[str, Any], name: str) -> Iterator[tuple[str, Row]]:
    tested = any(isinstance(row, Mapping) and row.get("split") == "test" for row in top.values())
    for identity, row in top.items():
        place = f"{name}, problem {identity}"
        with placed(place):
            if not isinstance(row, Mapping):
                raise BadRecord(f"it is {shorten(row)}, not an object", "fetch the file again")
            if tested and row.get("split") != "test":
                continue
            one = _problem(identity, row)
        yield place, one


def _problem(identity: str, row: Mapping[str, Any]) -> Row:
    options, answer, hint = texts_in(row, "choices"), row.get("answer"), row.get("hint")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise BadRecord(f"its answer is {shorten(answer)} of {shorten(list(options))}", "fetch the file again")
    image = f"{text_in(row, 'split')}/{identity}/{text_in(row, 'image')}" if row.get("image") else None
    return Row(
        id=identity,
        text=text_in(row, "question") + (f"\nContext: {hint}" if hint else ""),
        image=image,
        answers=(),
        question_type=text_in(row, "subject"),
        groups=tuple(_groups(bool(image), bool(hint), str(row.get("grade", "")))),
        options=options,
        right=answer,
    )


def _groups(picture: bool, text: bool, grade: str) -> Iterator[str]:
    if picture:
        yield _PICTURE
    if text:
        yield "with text"
    if not picture and not text:
        yield "no context"
    if found := re.fullmatch(r"grade(\d+)", grade):
        yield "grades 1-6" if int(found[1]) <= 6 else "grades 7-12"


def _of_llava(file: Published) -> Iterator[tuple[str, Row]]:
    """Conversations of a question with its options and an answer that names one."""
    for number, (place, row) in enumerate(file.records(), 1):
        with placed(place):
            content = read_row(NamedRow(row, {}, ""), (), number)
            said = {turn.role: turn.text for turn in content.turns}
            if not said.keys() >= {"human", "gpt"}:
                raise BadRecord("it has no question and answer", "fetch the file again")
            image = content.images[0] if content.images else None
            groups = (_PICTURE,) if image is not None else ()
            one = Row(text_in(row, "id"), said["human"], image, (said["gpt"],), groups=groups)
        yield place, one


SCIENCEQA = Benchmark("scienceqa", "choice", LETTER, _is_its, _rows)
