"""TextVQA (textvqa.org): one JSON object with `data`."""

from collections.abc import Iterator

from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, placed, text_in, texts_in


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    for place, row in file.listed("data"):
        with placed(place):
            image = f"{text_in(row, 'image_id')}.jpg"
            one = Row(text_in(row, "question_id"), text_in(row, "question"), image, texts_in(row, "answers"))
        yield place, one


TEXTVQA = Benchmark("textvqa", "textvqa", SHORT, lambda file: file.lists("data", "flickr_original_url"), _rows)
