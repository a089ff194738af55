"""VQAv2 (visualqa.org): a file of questions and one of annotations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from basic_lite.data.problems import BadRecord, shorten
from basic_lite.errors import UserError
from basic_lite.outside import read_json_file
from basic_lite.tools.benchmarks.form import SHORT, Benchmark, Published, Row, numbered_records, placed, text_in


def _is_its(file: Published) -> bool:
    return file.top is not None and "questions" in file.top and {"data_subtype", "task_type"} & file.top.keys() != set()


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    assert file.top is not None
    subset = text_in(file.top, "data_subtype")
    annotations, pictures = _annotations(file, subset), subset.replace("-dev", "")  # test-dev is a part of test
    for place, row in file.listed("questions"):
        with placed(place):
            found = annotations.get(text_in(row, "question_id")) if annotations is not None else {}
            if found is None:
                raise BadRecord("the file of annotations has no answer to it", "name its own with --annotations")
            image_id = row.get("image_id")
            if not isinstance(image_id, int):
                raise BadRecord(f"its 'image_id' is {shorten(image_id)}, not a number", "fetch the file again")
            one = Row(
                id=text_in(row, "question_id"),
                text=text_in(row, "question"),
                image=f"COCO_{pictures}_{image_id:012d}.jpg",
                answers=_answers(found),
                question_type=text_in(found, "answer_type") if found else None,
            )
        yield place, one


def _answers(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    listed = annotation.get("answers", [])
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise BadRecord(f"its annotation's answers are {shorten(listed)}", "fetch the file again")
    # Some people gave a blank answer, which counts as theirs.
    return tuple("" if not str(one.get("answer")).strip() else text_in(one, "answer") for one in listed)


def _annotations(file: Published, subset: str) -> dict[str, Mapping[str, Any]] | None:
    """Annotations by the question's id; None for a test set, whose answers aren't public."""
    path = file.answers or _beside(file.path)
    if path is None:
        if subset.startswith("test"):
            return None
        raise UserError(
            f"{file.name}: the file with the answers isn't beside it "
            f"({file.path.name.replace('OpenEnded_', '').replace('questions', 'annotations')}); name it with "
            "--annotations FILE"
        )
    try:
        top = read_json_file(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the annotations can't be read ({error}); fetch the file again") from error
    if not isinstance(top, Mapping):
        raise UserError(f"{path}: this isn't VQA's file of annotations; name it with --annotations FILE")
    found = {}
    for place, row in numbered_records(top, "annotations", str(path)):
        with placed(place):
            found[text_in(row, "question_id")] = row
    return found


def _beside(path: Path) -> Path | None:
    """`v2_mscoco_val2014_annotations.json` for `v2_OpenEnded_mscoco_val2014_questions.json`, if it is there."""
    name = path.name.replace("questions", "annotations")
    found = (path.with_name(one) for one in (name, name.replace("OpenEnded_", "")) if one != path.name)
    return next((one for one in found if one.is_file()), None)


VQAV2 = Benchmark("vqav2", "vqa", SHORT, _is_its, _rows)
