"""GQA (cs.stanford.edu/people/dorarad/gqa): one JSON object, a question under each id.

Accuracy is given by type as the benchmark's `eval.py` has it: binary and open questions, structural and semantic types.
"""

from collections.abc import Iterator, Mapping

from basic_lite.data.problems import BadRecord, shorten
from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    assert file.top is not None
    for identity, row in file.top.items():
        place = f"{file.name}, question {identity}"
        with placed(place):
            if not isinstance(row, Mapping):
                raise BadRecord(f"it is {shorten(row)}, not an object", "fetch the file again")
            types = row.get("types")
            named = {key: value for key, value in types.items() if value} if isinstance(types, Mapping) else {}
            kind = "open" if named.get("structural") == "query" else "binary"
            one = Row(
                id=identity,
                text=text_in(row, "question"),
                image=f"{text_in(row, 'imageId')}.jpg",
                answers=(text_in(row, "answer"),) if row.get("answer") is not None else (),
                question_type=kind if named else None,
                groups=tuple(f"{key}: {named[key]}" for key in ("structural", "semantic") if key in named),
            )
        yield place, one


GQA = Benchmark("gqa", "exact", SHORT, lambda file: file.holds({"imageId", "question"}), _rows)
