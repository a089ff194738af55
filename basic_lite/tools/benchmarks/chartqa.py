"""ChartQA (vis-nlp/ChartQA): a list, `test_human.json` and `test_augmented.json`."""

import re
from collections.abc import Iterator

from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in


def _is_its(file: Published) -> bool:
    return {"imgname", "query", "label"} <= (file.first or {}).keys()


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    kind = re.search(r"human|augmented", file.path.stem)
    for number, (place, row) in enumerate(file.records(), 1):
        with placed(place):
            one = Row(
                id=str(number),
                text=text_in(row, "query"),
                image=text_in(row, "imgname"),
                answers=(text_in(row, "label"),),
                question_type=kind[0] if kind else None,
            )
        yield place, one


CHARTQA = Benchmark("chartqa", "relaxed", SHORT, _is_its, _rows)
