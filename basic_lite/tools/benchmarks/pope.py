"""POPE (RUCAIBox/POPE): a JSON object a line, `coco_pope_random.json` and its sisters."""

import re
from collections.abc import Iterator

from basic_lite.data.problems import BadRecord, shorten
from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in


def _is_its(file: Published) -> bool:
    first = file.first or {}
    return {"question_id", "image", "text", "label"} <= first.keys() and first["label"] in ("yes", "no")


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    named = re.search(r"random|popular|adversarial", file.path.stem)
    for place, row in file.records():
        with placed(place):
            if row.get("label") not in ("yes", "no"):
                raise BadRecord(f"its label is {shorten(row.get('label'))}, not yes or no", "fetch the file again")
            one = Row(
                id=text_in(row, "question_id"),
                text=text_in(row, "text"),
                image=text_in(row, "image"),
                answers=(row["label"],),
                question_type=text_in(row, "category") if "category" in row else named[0] if named else None,
            )
        yield place, one


POPE = Benchmark("pope", "yes_no", SHORT, _is_its, _rows)
