"""The published files of benchmarks: one real-looking sample each, and what is said of others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from basic_lite.data.images import open_image
from basic_lite.errors import UserError
from basic_lite.tools.asked import Asked, File, read_asked
from basic_lite.tools.benchmarks.form import LETTER, SHORT, Published
from basic_lite.tools.benchmarks.known import BENCHMARKS
from tests.support.benchmarks import (
    CHARTQA,
    DOCVQA,
    GQA,
    LLAVA_SCIENCEQA,
    POPE,
    POPE_PICTURE,
    SCIENCEQA,
    TEXTVQA,
    VQA_ANNOTATIONS,
    VQA_QUESTIONS,
    mmbench,
)


def read(folder: Path, name: str, content: Any, **how: Any) -> Asked:
    """What a file of that content asks; a list is written as lines where its name says so."""
    lines = name.endswith(".jsonl") or "pope" in name
    (folder / name).write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    return read_asked(File(folder / name, **how), None)


def shown(asked: Asked) -> list[tuple[Any, ...]]:
    """Picture, text, answers, type and groups of each question."""
    return [
        (
            one.record.images[0].name if one.record.images else None,
            one.record.turns[0].text,
            one.answers,
            one.record.question_type,
            one.groups,
        )
        for one in asked.questions
    ]


def test_the_document_counts_them() -> None:
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    text = (Path(__file__).parents[2] / "docs/EVAL.md").read_text()
    assert f"the published files of {numbers[len(BENCHMARKS) - 1]} benchmarks" in text


def test_vqav2(tmp_path: Path) -> None:
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(VQA_ANNOTATIONS))
    asked = read(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", VQA_QUESTIONS)
    text = f"Where is he looking?\n{SHORT}"
    assert asked.benchmark is BENCHMARKS["vqav2"] and asked.metric(None).name == "vqa"
    assert shown(asked) == [("COCO_val2014_000000262148.jpg", text, (*["net"] * 9, "down"), "other", ())]
    (tmp_path / "mine.json").write_text(json.dumps(VQA_ANNOTATIONS))
    same = read(tmp_path, "other_name.json", VQA_QUESTIONS, annotations=tmp_path / "mine.json", instruction="")
    assert shown(same)[0][1] == "Where is he looking?" and same.questions[0].answers == asked.questions[0].answers
    with pytest.raises(UserError, match=r"the file with the answers isn't beside it .*; name it with --annotations"):
        read(tmp_path, "other_name.json", VQA_QUESTIONS)
    test = read(tmp_path, "test_questions.json", {**VQA_QUESTIONS, "data_subtype": "test2015"})
    assert shown(test)[0][0] == "COCO_test2015_000000262148.jpg" and not test.questions[0].is_scored
    part = read(tmp_path, "test_questions.json", {**VQA_QUESTIONS, "data_subtype": "test-dev2015"})
    assert shown(part)[0][0] == "COCO_test2015_000000262148.jpg"
    (tmp_path / "mine.json").write_text(json.dumps(VQA_ANNOTATIONS).replace('"down", "answer_c', '" ", "answer_c'))
    blank = read(tmp_path, "other_name.json", VQA_QUESTIONS, annotations=tmp_path / "mine.json")
    assert blank.questions[0].answers == (*["net"] * 9, "")


def test_textvqa_and_docvqa(tmp_path: Path) -> None:
    text = read(tmp_path, "TextVQA_0.5.1_val.json", TEXTVQA)
    assert text.metric(None).name == "textvqa" and len(text.questions[0].answers) == 10
    assert shown(text)[0][:2] == ("003a8ae2ef43b901.jpg", f"what is the brand of this camera?\n{SHORT}")
    document = read(tmp_path, "val_v1.0.json", DOCVQA)
    assert document.metric(None).name == "anls" and document.metric("exact").name == "exact"
    ((image, _, answers, kind, groups),) = shown(document)
    assert (image, answers, kind, groups) == ("documents/pybv0228_81.png", ("0.28",), None, ("figure/diagram",))


def test_gqa(tmp_path: Path) -> None:
    asked = read(tmp_path, "testdev_balanced_questions.json", GQA)
    assert asked.metric(None).name == "exact" and [one.record.id for one in asked.questions] == [*GQA]
    assert shown(asked)[0] == (
        "n161313.jpg",
        f"Is it overcast?\n{SHORT}",
        ("no",),
        "binary",
        ("structural: verify", "semantic: global"),
    )
    assert shown(asked)[1][3:] == ("open", ("structural: query", "semantic: rel"))


def test_pope_and_chartqa(tmp_path: Path) -> None:
    asked = read(tmp_path, "coco_pope_random.json", POPE)
    assert asked.benchmark is BENCHMARKS["pope"] and asked.metric(None).name == "yes_no"
    assert [one[2:4] for one in shown(asked)] == [(("yes",), "random"), (("no",), "random")]
    chart = read(tmp_path, "test_human.json", CHARTQA)
    assert chart.metric(None).name == "relaxed"
    text = f"How many food item is shown in the bar graph?\n{SHORT}"
    assert shown(chart) == [("41699051005347.png", text, ("14",), "human", ())]


def test_scienceqa(tmp_path: Path) -> None:
    asked = read(tmp_path, "problems.json", SCIENCEQA)  # the train split isn't asked
    context = "Context: Sing, O goddess, the anger of Achilles son of Peleus."
    text = f"Which figure of speech is used in this text?\n{context}\nA. chiasmus\nB. apostrophe\n{LETTER}"
    groups = ("with text", "grades 7-12")
    assert shown(asked) == [(None, text, ("B",), "language science", groups)]
    only = read(tmp_path, "problems.json", {"1": SCIENCEQA["1"]})
    assert shown(only)[0][0] == "train/1/image.png" and shown(only)[0][2:] == (
        ("A",),
        "social science",
        ("with picture", "grades 1-6"),
    )
    alike = read(tmp_path, "problems.json", {"4": {**SCIENCEQA["4"], "choices": ["x", "y", "x"]}})
    assert alike.questions[0].answers == ("B",)
    listed = read(tmp_path, "llava_test_CQM-A.json", LLAVA_SCIENCEQA, benchmark="scienceqa")
    assert listed.metric(None).name == "choice"
    assert shown(listed)[0] == (
        "5/image.png",
        f"What is the name?\nContext: N/A\nA. Haiti\nB. Cuba\n{LETTER}",
        ("The answer is B.",),
        None,
        ("with picture",),
    )
    assert read(tmp_path, "llava_test_CQM-A.json", LLAVA_SCIENCEQA).benchmark is None  # a form of training data


def test_mmbench_is_asked_in_every_order(tmp_path: Path) -> None:
    asked = read_asked(File(mmbench(tmp_path)), None)
    assert asked.metric(None).name == "choice" and [one.circle for one in asked.questions] == ["241"] * 3 + ["252"] * 2
    orders = [one.record.turns[0].text for one in asked.questions[:3]]
    assert orders[0] == f"A table\nIdentify the question\nA. yes\nB. no\nC. maybe\n{LETTER}"
    assert orders[2] == f"A table\nIdentify the question\nA. maybe\nB. yes\nC. no\n{LETTER}"
    assert [one.answers for one in asked.questions] == [("B",), ("A",), ("C",), ("A",), ("B",)]
    assert shown(asked)[3][3:] == ("spatial", ("finegrained",))
    assert len({one.record.id for one in asked.questions}) == 5
    for one in asked.questions:  # the second question's picture is the first one's
        assert open_image(one.record.images[0]).getpixel((0, 0)) == (255, 0, 0)
    assert len(read_asked(File(mmbench(tmp_path), limit=1), None).questions) == 3
    said_none = read_asked(File(mmbench(tmp_path, C="None"), limit=1), None).questions
    assert len(said_none) == 3 and "C. None" in said_none[0].record.turns[0].text


def test_tables_that_are_read_at_once_all_have_long_cells(tmp_path: Path) -> None:
    """csv has one limit for the program: put back by the first, it was too low for the second."""
    csv.field_size_limit(131_072)
    cell = "A" * 300_000
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text(f"index\timage\n1\tx\n2\t{cell}\n", encoding="utf-8")
    first, second = Published(tmp_path / "a.tsv").table(), Published(tmp_path / "b.tsv").table()
    next(first), next(second)
    assert [row["image"] for _, row in first] == [row["image"] for _, row in second] == [cell]


def test_options_may_say_the_same(tmp_path: Path) -> None:
    """As in VLMEvalKit and in ScienceQA's own script: the letter is right or wrong."""
    asked = read_asked(File(mmbench(tmp_path, A="no")), None)
    assert "A. no\nB. no\nC. maybe" in asked.questions[0].record.turns[0].text
    assert [one.answers for one in asked.questions[:3]] == [("B",), ("A",), ("C",)]
    score = asked.metric(None).score
    first = asked.questions[0]
    text = first.record.turns[0].text
    assert [score(said, first.answers, text) for said in ("B", "A", "no", "maybe")] == [1, 0, 0, 0]
    alike = read(tmp_path, "problems.json", {"4": {**SCIENCEQA["4"], "choices": ["x", "x"]}})
    assert alike.questions[0].answers == ("B",)


def test_pictures_are_found_around_the_file_and_in_the_recipes_folder(tmp_path: Path) -> None:
    for folder in ("val2014", "elsewhere/pictures"):
        (tmp_path / folder).mkdir(parents=True)
    here, there = tmp_path / "val2014", tmp_path / "elsewhere/pictures"
    Image.new("RGB", (2, 2)).save(here / POPE_PICTURE)
    assert read(tmp_path, "coco_pope_random.json", POPE).questions[0].record.images[0].folder == str(here)
    asked = read(tmp_path, "coco_pope_random.json", POPE, image_dir=there)
    assert asked.questions[0].record.images[0].folder == str(there)
    assert list(asked.notes()) == [
        "questions of pope",
        'to each question is added: "Answer the question using a single word or phrase." (--instruction changes it)',
        f"pictures: {there}",
    ]


BROKEN = {**SCIENCEQA["4"], "answer": 2}
BROKEN_DOCUMENT = {"data": [{"questionId": 1, "question": "?", "image": "a.png", "answers": "x"}]}
LOST = {"annotations": Path("no.json")}


@pytest.mark.parametrize(
    ("name", "content", "how", "says"),
    [
        ("q.json", POPE, {"benchmark": "popes"}, "'popes' is none of vqav2, .*; did you mean pope?"),
        ("pope.json", POPE, {"benchmark": "gqa"}, "--benchmark gqa: .*pope.json: it is of pope; give --benchmark pope"),
        ("q.json", LLAVA_SCIENCEQA, {"benchmark": "pope"}, "it isn't in that benchmark's published form"),
        ("pope.json", POPE, {"annotations": Path("a.json")}, "--annotations belongs to VQAv2's questions"),
        ("q.json", LLAVA_SCIENCEQA, {"instruction": "x"}, "--instruction belongs to the file of a benchmark"),
        ("pope.json", [POPE[0], {**POPE[1], "label": "perhaps"}], {}, "line 2: its label is 'perhaps', not yes or no"),
        ("pope.json", [POPE[0], {**POPE[1], "text": None}], {}, "line 2: its 'text' is None, where a text belongs"),
        ("pope.json", [{**POPE[0], "image": "http://x/1.jpg"}], {}, "line 1: the picture .* lies on the web"),
        ("c.json", [CHARTQA[0], 3], {}, "c.json, record 2: a record must be an object, this is 3"),
        ("g.json", {**GQA, "x": 1}, {}, "g.json, question x: it is 1, not an object"),
        ("s.json", {"4": BROKEN}, {}, "problem 4: its answer is 2 of"),
        ("d.json", BROKEN_DOCUMENT, {}, "d.json, data, record 1: its 'answers' is 'x'"),
        ("v.json", {**VQA_QUESTIONS, "questions": 3}, LOST, "no.json: the annotations can't be"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, name: str, content: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, name, content, **how)


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    for changes, says in (
        ({"image": "no base64!"}, r"tsv, line 2: its picture is no base64"),
        ({"answer": "D"}, r"line 2: its answer is 'D', none of its options"),
        ({"A": "", "C": "nan", "answer": "B"}, r"line 2: its options are \['no'\]"),
    ):
        with pytest.raises(UserError, match=says):
            read_asked(File(mmbench(tmp_path, **changes)), None)
