"""DocVQA (rrc.cvc.uab.es): one JSON object with `data`."""

from collections.abc import Iterator

from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in, texts_in


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    for place, row in file.listed("data"):
        with placed(place):
            one = Row(
                id=text_in(row, "questionId"),
                text=text_in(row, "question"),
                image=text_in(row, "image"),
                answers=texts_in(row, "answers"),
                groups=texts_in(row, "question_types"),
            )
        yield place, one


DOCVQA = Benchmark("docvqa", "anls", SHORT, lambda file: file.lists("data", "questionId"), _rows)
