"""JSON files that begin with an object: records over several lines, and objects around all records."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data.check import check_data
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import DataSection, SourceSection
from basic_lite.tools.data.command import Words

PICTURE = {"license": 3, "file_name": "a b.jpg", "id": 7, "height": 4}
CAPTION = {"image_id": 7, "id": 1, "caption": "Ein Kätzchen."}
COCO = {"info": {"year": 2017}, "licenses": [{"id": 3}], "images": [PICTURE], "annotations": [CAPTION]}
PAIR = {"image": "a.png", "caption": "x"}


def load(folder: Path, name: str, text: str, **keys: Any) -> Records:
    (folder / name).write_text(text, encoding="utf-8")
    return load_records(SourceSection(path=name, **keys), root=folder)


def refused(folder: Path, data: Any, indent: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, "all.json", json.dumps(data, indent=indent))
    assert len(str(caught.value)) < 2_000
    return str(caught.value)


def done(folder: Path, said: str) -> Records:
    """Do what a message says, and read what that writes."""
    words = shlex.split(said[said.index("python -c") :])
    subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
    return load_records(SourceSection(path=words[-1]), root=folder)


@pytest.mark.parametrize("indent", [None, 1])
def test_coco_is_named_and_joined(tmp_path: Path, indent: int | None) -> None:
    said = refused(tmp_path, COCO, indent)
    assert said.startswith("all.json: this has the form of COCO")
    [record] = done(tmp_path, said)
    assert record.images[0].name == "a b.jpg" and record.answer == "Ein Kätzchen."


@pytest.mark.parametrize("indent", [None, 1])
def test_a_large_one_is_refused_by_its_beginning(tmp_path: Path, indent: int | None) -> None:
    """The first megabyte and the end are read: what comes between isn't even JSON."""
    text = json.dumps({**COCO, "annotations": []}, indent=indent)
    cut = text.index("[", text.index('"images"'))
    one = json.dumps(PICTURE, indent=indent)
    (tmp_path / "big.json").write_text(text[: cut + 1] + f"{one}, " * 40_000 + '?, {"caption": "x"}')
    started = time.process_time()
    with pytest.raises(UserError, match=r"the form of COCO, .* joins them"):
        load_records(SourceSection(path="big.json"), root=tmp_path)
    assert time.process_time() - started < 1


def test_coco_without_captions_has_nothing_to_learn(tmp_path: Path) -> None:
    boxes = {**COCO, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}]}
    assert "no caption is at its beginning or its end" in refused(tmp_path, boxes)


def test_other_forms_that_everybody_has(tmp_path: Path) -> None:
    sentences = [{"raw": "one", "tokens": ["one"]}, {"raw": "two"}]
    karpathy = {"images": [{"filename": "a.jpg", "filepath": "val", "sentences": sentences}], "dataset": "coco"}
    records = done(tmp_path, refused(tmp_path, karpathy))
    assert [(one.images[0].name, one.answer) for one in records] == [("val/a.jpg", "one"), ("val/a.jpg", "two")]
    answers = [{"question_id": 1, "image_id": 9, "multiple_choice_answer": "yes", "answers": [{"answer": "yes"}]}]
    for part in ("train2014", "val2014"):
        (tmp_path / "ANNOTATIONS.json").write_text(json.dumps({"annotations": answers}))
        questions = [{"question_id": 1, "image_id": 9, "question": "Is it?"}]
        (tmp_path / "all.jsonl").unlink()
        [record] = done(tmp_path, refused(tmp_path, {"questions": questions, "data_subtype": part}))
        assert record.images[0].name == f"COCO_{part}_000000000009.jpg"
        assert [turn.text for turn in record.turns] == ["Is it?", "yes"]
        answers[0].pop("multiple_choice_answer", None)  # OK-VQA has none, which ended the command
    assert "this has the form of VQA" in refused(tmp_path, {"annotations": answers})


@pytest.mark.parametrize(
    "value", ["x", ["x"], {"caption": "x"}, [{"caption": "x", "id": 1}]], ids=["text", "list", "object", "objects"]
)
def test_texts_under_the_names_of_pictures(tmp_path: Path, value: Any) -> None:
    """A list was said to be a table of pandas; of objects the commands left the names out."""
    (tmp_path / "in").mkdir()
    data = {"a.png": value, "b/c.JPG": value}
    with pytest.raises(UserError, match=r"what belongs to each picture under its name \('a\.png', …\)") as caught:
        load(tmp_path, "in/all.json", json.dumps(data, indent=1))
    records = done(tmp_path, str(caught.value))
    assert [(one.source, one.images[0].name, one.answer) for one in records] == [
        ("in/all.jsonl", name, "x") for name in data
    ]


@pytest.mark.parametrize("data", [COCO, {"a.png": "x"}], ids=["coco", "names"])
def test_no_command_overwrites_data(tmp_path: Path, data: Any) -> None:
    """In a .jsonl file the command named it twice, and emptied it before it was read; it replaced others, too."""
    text = json.dumps(data, indent=1)
    with pytest.raises(UserError) as caught:
        load(tmp_path, "all.jsonl", text)
    [record] = done(tmp_path, str(caught.value))
    assert record.source == "all_records.jsonl" and (tmp_path / "all.jsonl").read_text() == text
    said = refused(tmp_path, data)
    with pytest.raises(subprocess.CalledProcessError):
        done(tmp_path, said)
    assert (tmp_path / "all.jsonl").read_text() == text


def test_conversations_under_the_names_of_pictures(tmp_path: Path) -> None:
    """The command made a record of each turn, without a text."""
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "x"}]
    [record] = done(tmp_path, refused(tmp_path, {"a.png": talk, "b.png": []}))
    assert record.images[0].name == "a.png" and [turn.text for turn in record.turns] == ["What is it?", "x"]


def test_label_studios_whole_export_is_named(tmp_path: Path) -> None:
    """The command wrote its annotations without the pictures."""
    result = [{"value": {"text": ["a cat"]}, "from_name": "caption"}]
    task = {"id": 1, "annotations": [{"id": 2, "result": result}], "data": {"image": "/data/upload/1/a.png"}}
    assert "export it again as JSON-MIN or CSV" in refused(tmp_path, [task, task])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"data": [PAIR]}, "records are in the list 'data'. Write the list alone"),
        ({"description": "pets", "data": [PAIR]}, "in the list 'data'"),
        ({"train": [PAIR], "test": [PAIR]}, "in the lists 'train', 'test'"),
        ({"set": {"train": [PAIR]}}, "in the list 'set.train'"),
        ({"0001": PAIR, "0002": PAIR}, "each record has a name there ('0001', …)"),
    ],
)
def test_records_inside_an_object_are_got_out(tmp_path: Path, data: Any, expected: str) -> None:
    said = refused(tmp_path, data)
    assert expected in said
    assert [one.answer for one in done(tmp_path, said)] == ["x"] * (2 if "0001" in data else 1)


def test_lists_inside_a_list_are_made_one(tmp_path: Path) -> None:
    """As Visual Genome's questions and regions, a list for each picture."""
    said = refused(tmp_path, [{"id": n, "qas": [{"question": "q", "answer": "a", "image_id": n}] * 2} for n in (1, 2)])
    assert "in a list of its own, 'qas'" in said and "add it to each, as `image`" in said
    assert len(done(tmp_path, said.partition(". The records")[0])) == 4
    assert "'regions'" in refused(tmp_path, [{"id": 1, "regions": [{"phrase": "a cat", "image_id": 1}]}])
    kept = [{"image": "a.png", "answers": [{"answer": "yes"}]}]
    assert load(tmp_path, "a.json", json.dumps(kept))[0].answer == "yes"
    assert load(tmp_path, "b.json", json.dumps(kept[0]))[0].answer == "yes"


def test_what_such_records_lack_is_said(tmp_path: Path) -> None:
    said = refused(tmp_path, {"annotations": [CAPTION]})
    assert "no name of a picture file, only ['image_id', 'id', 'caption']; add it to each, as `image`" in said
    said = refused(tmp_path, {"a key's \x1b": [PAIR]})
    assert "Write that list alone into a file" in said and "\x1b" not in said
    assert "none of these belongs to a record" in refused(tmp_path, {"epoch": 3, "mean": 0.5})


def test_the_first_megabyte_without_a_key_of_a_record_is_enough(tmp_path: Path) -> None:
    started = time.process_time()
    said = refused(tmp_path, {"version": 3, "cells": list(range(400_000)), "x": 1})
    assert "first keys are ['version', 'cells'], and none of these belongs to a record" in said
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("count", [1, 3])
def test_records_over_several_lines_are_read(tmp_path: Path, name: str, count: int) -> None:
    rows = [{**PAIR, "id": number, "boxes": [{"label": "x"}]} for number in range(count)]
    records = load(tmp_path, name, "\n".join(json.dumps(row, indent=2) for row in rows) + "\n")
    assert [record.id for record in records] == [str(number) for number in range(count)]
    assert records.place(0) == f"{name}, record 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n "image": "a.png",\n "caption": x\n}\n', "line 3, column 13: broken JSON"),
        ('{\n "image": "a.png"\n},\n{\n "image": "b.png"\n}', "line 3, column 2: .*commas between them are a list"),
        ('{\n "image": "a.png"\n}\n{\n "image": "b.png"', "the file ends inside a record"),
        ('{\n "image": "a.png"\n}\n[1]', "line 4, column 1: .*a record belongs here"),
    ],
)
def test_broken_ones_are_one_error_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load(tmp_path, "a.jsonl", text)


def test_lines_stay_lines(tmp_path: Path) -> None:
    """A first line that is broken, or long, or has objects of its own, says nothing about the others."""
    good = json.dumps(PAIR)
    for first in ('{"image": "a.png", "caption": "x"', '{"image": "a.png",', "{", json.dumps({"data": [PAIR]})):
        assert len(load(tmp_path, "a.jsonl", f"{first}\n{good}\n{good}\n")) == 3
    long = json.dumps({"blob": "x" * (1 << 21), **PAIR, "boxes": [PAIR]})
    assert [one.answer for one in load(tmp_path, "a.jsonl", f"{long}\n{good}\n")] == ["x", "x"]
    own = {"id": 1, "image": "a.png", "question": "?", "answers": [{"answer": "yes"}]}
    assert load(tmp_path, "a.json", json.dumps(own))[0].answer == "yes"


def test_a_file_of_another_form_is_one_error(tmp_path: Path) -> None:
    """Python's own way of writing, with single quotes: nobody wants each line of it named."""
    lines = [str({**PAIR, "id": number}) for number in range(1_001)]
    expected = (
        r"^none of the first 1,000 lines of a\.jsonl is a record \(a\.jsonl, line 1: column 2: .*one record a line"
    )
    with pytest.raises(UserError, match=expected):
        load(tmp_path, "a.jsonl", "\n".join(lines))
    assert len(load(tmp_path, "a.jsonl", "\n".join([*lines[:-2], json.dumps(PAIR), *lines]))) == 2_001


def test_problems_of_many_records_take_no_frames_along(tmp_path: Path) -> None:
    section = DataSection(train=SourceSection(path="a.jsonl"), bad_records="drop")
    records = load(tmp_path, "a.jsonl", json.dumps(PAIR) + '\n{"image": 3, "caption": "x"}\n{"caption": \n')
    problems = check_data(records, Words(), section.model_copy(update={"check_images": "none"})).problems
    assert len(problems) == 2
    assert not any(one.__traceback__ or one.__cause__ or one.__context__ for one in problems)
