"""Data that other programs read otherwise: read as it is meant, or refused; never trained on in another sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.problems import BadImage, BadRecord
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
COLUMNS = {"image": ["p0.png", "p1.png", "p2.png"], "caption": ["red ring", "blue square", "green cross"]}
BY_INDEX = {name: dict(enumerate(values)) for name, values in COLUMNS.items()}
ASKED = {"image": "a.png", "question": "What is it?"}


def load(folder: Path, *rows: Any, name: str = "a.jsonl", **keys: Any) -> Any:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_records(SourceSection(path=name, **keys), root=folder)


def said(record: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.replace(IMAGE, "<image>")) for turn in conversation(record)]


@pytest.mark.parametrize(("name", "indent"), [("a.json", None), ("a.json", 2), ("a.jsonl", None)])
@pytest.mark.parametrize(
    "table",
    [
        COLUMNS,
        BY_INDEX,
        {"id": [1, 2], "image": ["a.png", "b.png"], "conversations": [TURNS, TURNS]},
        {"image": ["a.png", "b.png"], "question": ["q1", "q2"], "answer": ["a1", None]},
        {"image": [["a.png"], ["b.png"]], "question": ["q1", "q2"], "answers": [["a"], ["b"]]},
        {"Bild": ["a.png", "b.png"], "Text": ["one", "two"]},
    ],
    ids=str,
)
def test_a_table_by_columns_is_refused(tmp_path: Path, table: Any, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(table, indent=indent), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_records(SourceSection(path=name), root=tmp_path)
    assert f"{name}: this is a table by columns: its keys" in str(caught.value)
    assert "df.to_json(path, orient='records', lines=True)" in str(caught.value)


def test_other_tables_of_pandas_are_refused(tmp_path: Path) -> None:
    by_row = {n: {"image": f"{n}.png", "caption": "x"} for n in range(2)}
    with pytest.raises(UserError, match=r"each record has a name there .*Write the list alone, .*: python -c"):
        load(tmp_path, by_row)
    with pytest.raises(UserError, match=r"as pandas writes a table with orient='split'; .*lines=True"):
        load(tmp_path, {"columns": ["image", "caption"], "index": [0], "data": [["0.png", "x"]]})


@pytest.mark.parametrize(
    "row",
    [
        {"image": ["a.png", "b.png"], "question": "Which?", "answer": "The first."},
        {"image": ["a.png", "b.png"], "caption": "Two."},
        {"images": ["a.png", "b.png"], "messages": TURNS},
        {"images": ["a.png", "b.png"], "prompt": TURNS, "completion": TURNS},
        {"image": ["a.png"], "caption": ["One."]},
        {"image": ["a.png", "b.png"], "captions": ["Two.", "A pair.", "Both."]},
    ],
    ids=str,
)
def test_one_record_of_several_pictures_stays_one(tmp_path: Path, row: dict[str, Any]) -> None:
    for name in ("a.json", "a.jsonl"):
        (record,) = load(tmp_path, row, name=name)
        assert len(record.images) == len(row.get("image") or row["images"])
    # Of several lines, and of a list, each is a record.
    assert len(load(tmp_path, COLUMNS, COLUMNS)) == 2
    assert len(load(tmp_path, COLUMNS, COLUMNS, limit=1)) == 1
    assert len(load(tmp_path, [COLUMNS])) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": ["q1", "q2"], "answer": ["a1", "a2"]}, "its 'question' is a list of 2 questions and 2 answers;"),
        ({"question": ["q1", "q2"], "answer": "a1"}, "its 'question' is a list of 2 questions;"),
        ({"question": ["q1"], "answers": ["a1", "a2"]}, "its 'question' is a list of 1 question and 2 answers;"),
        ({"questions": ["q1", "q2"], "answers": ["a1", "a2"]}, "its 'questions' is a list of 2 questions"),
    ],
    ids=str,
)
def test_a_list_of_questions_is_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRecord) as caught:
        load(tmp_path, {"image": "a.png", **row}, [])[0]
    assert told in str(caught.value) and "write one record a question" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"caption": "['A cat.', 'A dog.']"},
        {"caption": ' ["A cat."]'},
        {"text": "['A cat.'\n 'A dog.']"},  # as numpy writes it
        {"question": "q", "answers": "[{'answer': 'net'}, {'answer': 'nets'}]"},
        {"question": "q", "captions": "['A cat.', 'A dog.']"},
        {"question": "['q1', 'q2']", "answer": "a"},
    ],
    ids=str,
)
def test_a_list_that_a_program_wrote_into_a_cell_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    """As pandas writes a column of lists to CSV."""
    with pytest.raises(BadRecord, match=r"is a list written as one text .*brackets would be learned; write one"):
        load(tmp_path, {"image": "a.png", **row})[0]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "List what you see, in JSON.", "answer": '["cat", "dog"]'},
        {"caption": "[1, 2]"},
        {"caption": "[A cat and a dog]"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "['a', 'b']"}]},
    ],
    ids=str,
)
def test_other_brackets_are_texts(tmp_path: Path, row: dict[str, Any]) -> None:
    assert said(load(tmp_path, {"image": "a.png", **row})[0])[-1][1].startswith("[")


@pytest.mark.parametrize(("text", "fits"), [('[{"label": "cat"}]', True), ("[{'caption': 'x'}]", False)])
def test_a_prompt_may_ask_for_objects_in_json(text: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text(text)
    records = load_records(SourceSection(folder=".", prompt="List the objects as JSON."), root=tmp_path)
    if fits:
        assert records[0].turns[1].text == text
    else:
        with pytest.raises(BadRecord, match="is a list written as one text"):
            records[0]


def test_a_list_of_pictures_in_a_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadImage, match=r"its picture is a list written as one text .*; write one path, or make the file"
    ):
        load(tmp_path, {"image": "['a.png', 'b.png']", "caption": "x"})[0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": ["q"], "answer": ["a"]}, [("human", "<image>\nq"), ("gpt", "a")]),
        ({"questions": "q", "answers": "a"}, [("human", "<image>\nq"), ("gpt", "a")]),
        ({"question": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}], "answer": "a"},
         [("human", "<image>\nqr"), ("gpt", "a")]),
    ],
    ids=str,
)  # fmt: skip
def test_one_question_in_a_list_is_one(tmp_path: Path, row: dict[str, Any], expected: Any) -> None:
    assert said(load(tmp_path, {"image": "a.png", **row})[0]) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["cat", "dog"], "answer": 1},
        {"choices": ["cat", "dog"], "answer": 1.0},
        {"options": ["cat", "dog"], "answer": "B"},
        {"options": ["cat", "dog"], "answer": ["(b)"]},
        {"Options": "['cat', 'dog']", "answer": "B."},
        {"options": "cat; dog", "answer": "2"},
        {"options": "A. cat B. dog", "answer": "B"},
        {"options": "['cat' 'dog']", "answer": "B"},
        {"choices": {"A": "cat", "B": "dog"}, "answer": "A"},
        {"choices": {"label": ["A", "B"], "text": ["cat", "dog"]}, "answer": "A"},
        {"choices": [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}], "answer": "A"},
        {"A": "cat", "B": "dog", "C": None, "answer": "A"},
        {"choice_a": "cat", "choice_b": "dog", "answer": "A"},
        {"question": "Which, (1) cat?", "choices": ["cat", "dog"], "answer": "1"},
        {"question": "A. cat, B. dog?", "choices": ["cat", "dog"], "answer": 1},
        {"question": "A. cat, B. dog?", "choices": ["cat", "dog"], "answer": 1.0},
    ],
    ids=str,
)
def test_an_answer_that_names_an_option_nobody_shows_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(BadRecord) as caught:
        load(tmp_path, {**ASKED, **row})[0]
    assert "stands for one of the options in '" in str(caught.value)
    assert "write the options into the question, and the right one's text as the answer" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["cat", "dog"], "answer": "dog"},
        {"choices": ["1", "2"], "answer": "2"},
        {"choices": [10, 20], "answer": 20},
        {"choices": ["a", "an"], "answer": "a"},
        {"options": [], "answer": 1},
        {"options": "[]", "answer": "B"},
        {"options": None, "answer": "B"},
        {"options": "none", "answer": 3},
        {"question": "What?\nA. cat\nB. dog", "options": ["cat", "dog"], "answer": "B"},
        {"question": "What? 0) cat 1) dog", "options": ["cat", "dog"], "answer": 1},
        {"A": "an article", "answer": "A"},
    ],
    ids=str,
)
def test_other_answers_beside_options_are_texts(tmp_path: Path, row: dict[str, Any]) -> None:
    whole = {**ASKED, **row}
    assert said(load(tmp_path, whole)[0]) == [("human", f"<image>\n{whole['question']}"), ("gpt", str(row["answer"]))]


def test_options_of_a_data_set_are_seen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_list([{**ASKED, "choices": ["cat", "dog"], "answer": 1}])
    data.to_parquet(tmp_path / "data.parquet")
    with pytest.raises(BadRecord, match="stands for one of the options in 'choices'"):
        load_records(SourceSection(parquet="data.parquet"), root=tmp_path)[0]
    (tmp_path / "a.csv").write_text("image,question,A,B,answer\na.png,What?,cat,dog,B\n")
    with pytest.raises(BadRecord, match=r"^a\.csv, line 2: its answer 'B' stands for one of the options in 'A', 'B'"):
        load_records(SourceSection(path="a.csv"), root=tmp_path)[0]


def test_the_answer_that_people_agree_on(tmp_path: Path) -> None:
    """VQA v2 on the hub: `answers` begins with what the first person said."""
    people = [
        {"answer": one, "answer_confidence": "yes", "answer_id": n} for n, one in enumerate(["net", "nets", "nets"])
    ]
    row = {**ASKED, "answers": people, "multiple_choice_answer": "nets", "answer_type": "other"}
    assert said(load(tmp_path, row)[0])[1] == ("gpt", "nets")
    assert said(load(tmp_path, {**ASKED, "answers": people})[0])[1] == ("gpt", "net")
    assert said(load(tmp_path, row, columns={"answer": "answers"})[0])[1] == ("gpt", "net")


CAULDRON = {"images": ["a.png"], "texts": [
    {"user": "What is it?", "assistant": "A cat.", "source": "x"}, {"user": "Sure?", "assistant": "Yes.", "source": "x"}
]}  # fmt: skip


def test_the_cauldron_is_a_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes.")]
    assert said(load(tmp_path, CAULDRON)[0]) == expected
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_list([CAULDRON]).to_parquet(tmp_path / "data.parquet")
    assert said(load_records(SourceSection(parquet="data.parquet"), root=tmp_path)[0]) == expected
    # Mapped as an answer, it is no text, and the message says so.
    with pytest.raises(BadRecord, match=r"its 'texts' is no text, but \[\{'user'"):
        load(tmp_path, CAULDRON, columns={"answer": "texts"})[0]
    captioned = {"image": "a.png", "caption": "A cat.", "texts": ["other", "words"]}
    assert said(load(tmp_path, captioned)[0]) == [("human", "<image>"), ("gpt", "A cat.")]


def test_hints_name_no_pictures_and_no_options(tmp_path: Path) -> None:
    def hint(header: str) -> str:
        (tmp_path / "a.csv").write_text(f"{header}\na.png,b\n")
        with pytest.raises(UserError) as caught:
            load_records(SourceSection(path="a.csv"), root=tmp_path)
        return str(caught.value)

    assert hint("image,image_path").endswith("can be the text to learn; add a column answer, or caption.")
    assert hint("image,choices").endswith("can be the text to learn; add a column answer, or caption.")
    assert hint("Worte,image").endswith("as in data.train.columns.answer=Worte.")
    assert hint("image_name,Worte").endswith(
        "as in data.train.columns.image=image_name data.train.columns.answer=Worte."
    )
    assert hint("choices,Worte").endswith("as in data.train.columns.answer=Worte.")


@pytest.mark.parametrize("row", [
    {"answer": "a\0cat"}, {"question": "\0"}, {"messages": [*TURNS, TURNS[0], {"role": "assistant", "content": "\0b"}]},
])  # fmt: skip
def test_a_nul_character_is_refused(tmp_path: Path, row: Any) -> None:
    """It was learned, of a table's cell too."""
    with pytest.raises(BadRecord, match=r"line 1: its text has a NUL character \('.*\\x00.*'\); take it out"):
        load(tmp_path, {**ASKED, "answer": "x"} | row)[0]


@pytest.mark.parametrize(
    "text", ["USER: <image>\nWhat? ASSISTANT: A cat.", "<s>[INST] <image> What? [/INST] A cat.</s>"]
)
def test_a_conversation_written_as_one_text_is_refused(tmp_path: Path, text: str) -> None:
    """It was taken for a caption, and its question was learned."""
    with pytest.raises(
        BadRecord, match=r"its 'text' has <image> in it, as a whole conversation has .* under `messages`"
    ):
        load(tmp_path, {"image": "a.png", "text": text})[0]
    assert load(tmp_path, {"image": "a.png", "question": "What marks a picture?", "answer": "<image>"})[0].answer


def test_a_picture_in_the_record_is_no_text(tmp_path: Path) -> None:
    """With a space behind its comma, and an answer that ends in a file's name, the two were said to be swapped."""
    row = {"image": "data:image/png;base64, AAAA", "question": "Where do I click?", "answer": "On the file a.png"}
    assert load(tmp_path, row)[0].answer == row["answer"]
