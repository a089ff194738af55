"""Good records of well-known data sets and exporters are read as they are meant, whatever else they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data.conversation import conversation
from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OPTIONS = {"question": "x\nA. one\nB. two", "answer": "B"}


def read(folder: Path, row: dict[str, Any], name: str = "a.json") -> tuple[list[str], str, str]:
    """The pictures, what is asked, and what is learned."""
    (folder / name).write_text(json.dumps([row] if name == "a.json" else row), encoding="utf-8")
    record = load_records(SourceSection(path=name), root=folder)[0]
    turns = conversation(record)
    return [image.name for image in record.images], turns[-2].text.strip(), turns[-1].text


@pytest.mark.parametrize(
    ("row", "pictures", "asked", "learned"),
    [
        # Tables that were joined have columns of others, with nothing in them.
        ({"question": "q", "multiple_choice_answer": None, "answers": ["a", "b"]}, [], "q", "a"),
        ({"question": "q", "multiple_choice_answer": "b", "answers": ["a", "b"]}, [], "q", "b"),
        ({"question": "q", "multiple_choice_answer": "B", "response": "long"}, [], "q", "long"),
        ({"prompt": "q", "response": "a", "questions": None}, [], "q", "a"),
        ({"instruction": "q", "output": "a", "questions": ["other"]}, [], "q", "a"),
        # A file's name isn't a picture's.
        ({"image": None, "question": "q", "answer": "a", "filename": "report.pdf"}, [], "q", "a"),
        ({"images": [], "instruction": "q", "output": "a", "path": "src/main.py"}, [], "q", "a"),
        ({"image": None, "question": "q", "answer": "a", "file_name": "b.png"}, ["b.png"], "q", "a"),
        # Options that are shown, or aren't options.
        ({**OPTIONS, "A": "one", "B": "two", "C": "nan", "D": None}, [], OPTIONS["question"], "B"),
        ({**OPTIONS, "options": "['one' 'two']"}, [], OPTIONS["question"], "B"),
        ({**OPTIONS, "options": "[one, two]"}, [], OPTIONS["question"], "B"),
        ({**OPTIONS, "options": ["(A) One", "(B) Two"]}, [], OPTIONS["question"], "B"),
        ({"question": "Which drawing?", "options": ["(A)", "(B)"], "answer": "A"}, [], "Which drawing?", "A"),
        ({"prompt": "q", "response": "2", "options": {"temperature": 0.2, "top_k": 3}}, [], "q", "2"),
        ({"question": "a + b?", "a": 1, "b": 1, "answer": "2"}, [], "a + b?", "2"),
        ({"question": "How many?", "options": [1, 2, 3, 4], "answer": 3}, [], "How many?", "3"),
        # A label, flags and scores that are no verdict; a conversation that is complete.
        ({"question": "Is it?", "answer": "No", "label": False}, [], "Is it?", "No"),
        ({"question": "q", "answer": "a", "chosen": True, "rejected": False}, [], "q", "a"),
        ({"messages": TURNS, "chosen": TURNS, "rejected": TURNS}, [], "q", "a"),
        # Texts that aren't pictures, and turns that say how many they have.
        ({"messages": [{"role": "user", "content": "Mend <img></img>."}, TURNS[1]]}, [], "Mend <img></img>.", "a"),
        ({"messages": [{**TURNS[0], "image": 0}, TURNS[1]]}, [], "q", "a"),
        ({"messages": [TURNS[0], {**TURNS[1], "loss": 0.734}]}, [], "q", "a"),
    ],
    ids=str,
)  # fmt: skip
def test_they_are_read(tmp_path: Path, row: dict[str, Any], pictures: list[str], asked: str, learned: str) -> None:
    images, question, answer = read(tmp_path, row)
    assert (images, answer) == (pictures, learned) and question.endswith(asked)


def test_a_first_line_of_a_megabyte_is_a_record(tmp_path: Path) -> None:
    row = {"metadata": {"notes": ["x" * 1_500_000]}, "question": "q", "answer": "a"}
    assert read(tmp_path, row, "a.jsonl") == ([], "q", "a")
