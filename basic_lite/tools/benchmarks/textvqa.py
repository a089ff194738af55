"""TextVQA (textvqa.org): one JSON object with `data`."""

from collections.abc import Iterator

from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in, texts_in


def _is_its(file: Published) -> bool:
    data = file.top.get("data") if file.top is not None else None
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "flickr_original_url" in data[0]


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    for place, row in file.listed("data"):
        with placed(place):
            image = f"{text_in(row, 'image_id')}.jpg"
            one = Row(text_in(row, "question_id"), text_in(row, "question"), image, texts_in(row, "answers"))
        yield place, one


TEXTVQA = Benchmark("textvqa", "textvqa", SHORT, _is_its, _rows)
