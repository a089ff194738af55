"""Records as programs and strangers write them: a usable conversation or one problem, and never work without end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import conversation
from basic_lite.data.images import ImageRef, check_image
from basic_lite.data.memory import records_of
from basic_lite.data.problems import RecordProblem, TooLong
from basic_lite.data.record import Record, Turn
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from tests.support.data import N, image_id, tokenizer
from tests.support.fuzzing import peak_bytes, soon_or_one_error

TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
DEEP = "[" * 100_000
DIGITS = "9" * 5000


def load(folder: Path, text: str, name: str = "a.json", **keys: Any) -> Any:
    (folder / name).write_text(text, encoding="utf-8")
    return load_records(SourceSection(path=name, **keys), root=folder)


def look_at(record: Record) -> None:
    for image in record.images:
        check_image(image, "open")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": {"bytes": "text"}}, "the bytes of its image are 'text'"),
        ({"image": {"bytes": 5, "path": "a.png"}}, "the bytes of its image are 5"),
        ({"image": {"bytes": [137, 80]}}, "the bytes of its image are"),
        ({"image": {"bytes": ""}}, "the bytes of its image are ''"),
        ({"image": "file://[::1"}, "Invalid IPv6 URL"),
        ({"image": "file://a.png"}, "names a computer, 'a.png', where its path should begin; write file:///"),
        ({"image": "a" * 5000}, "aaa…aaa"),
        ({"conversations": {"from": [2], "value": [1]}}, "turn 1 is from 2"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q"]}}, "differ in length"),
        ({"conversations": DEEP}, "nested too deeply"),
        ({"conversations": f"[{DIGITS}]"}, "too many digits"),
        ({"conversations": "NaN"}, "it is nan"),
        ({"conversations": None, "question": "q", "answer": True}, "its answer is True, not a text"),
        ({"conversations": None, "question": "q", "answer": float("nan")}, "its answer is nan, not a text"),
        ({"conversations": None, "question": "q", "answer": {"text": "a"}}, "its answer is {'text': 'a'}, not a text"),
        ({"conversations": None, "question": "q", "answer": "a", "history": 5}, "its history is 5"),
        ({"conversations": None, "question": "q", "answer": "a", "history": [5]}, "its history has 5"),
    ],
    ids=str,
)
def test_a_row_of_odd_types_is_one_problem(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    whole = {name: value for name, value in ({"id": 7, "conversations": TALK} | row).items() if value is not None}
    with pytest.raises(RecordProblem) as caught:
        look_at(load(tmp_path, json.dumps([whole]))[0])
    assert (said in str(caught.value) or "…" in said) and len(str(caught.value)) < 600


@pytest.mark.parametrize("answer", ["yes", "", 3, 2.5, ["two", "three"], None])
def test_answers_that_are_texts_or_numbers(answer: Any, tmp_path: Path) -> None:
    (record,) = load(tmp_path, json.dumps([{"question": "q", "answer": answer}]))
    assert record.answer == (None if answer is None else "two" if isinstance(answer, list) else str(answer))


@pytest.mark.parametrize(("name", "mark"), [("a.json", "line 1, column"), ("a.jsonl", "a.jsonl, line 1")])
@pytest.mark.parametrize("value", [DEEP, DIGITS, f"-{DIGITS}", "{" + '"a":{' * 100_000, "[" * 600 + "]" * 600])
def test_json_that_python_cannot_hold(name: str, mark: str, value: str, tmp_path: Path) -> None:
    row = f'{{"id": {value}, "conversations": []}}'
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"[{row}]" if name == "a.json" else row + "\n", name)[0]
    told = str(caught.value)
    assert any(why in told for why in ("nested too deeply", "too many digits", "conversations are empty"))
    assert (mark in told or "empty" in told) and len(told) < 400


@pytest.mark.parametrize(
    "value", ["[/b]", "\x1b[31m\n", "\ud800x", {"a": [1] * 1000}, "x" * 10**6, [[[[]]]], True, 10**400]
)
def test_an_id_of_any_kind(value: Any, tmp_path: Path) -> None:
    (record,) = load(tmp_path, json.dumps([{"id": value, "conversations": TALK, "question_type": value}]))
    for text in (record.id, record.question_type, record.place):
        text.encode()
    assert "\n" not in record.place and "\x1b" not in record.place and len(record.place) < 150


def test_names_that_python_gives() -> None:
    rows = [{1: 2, "question": "q", "answer": "a", "id": 10**5000, "question_type": float("nan")}]
    (record,) = records_of(rows, None)
    assert record.question_type is None and len(record.id) < 100


def test_lines_are_named_by_their_number_in_the_file(tmp_path: Path) -> None:
    good = json.dumps({"id": 1, "conversations": TALK})
    records = load(tmp_path, f"\n\n{good}\n\n{{broken\n{good}\n", "a.jsonl")
    assert [records.place(n) for n in range(3)] == ["a.jsonl, line 3", "a.jsonl, line 5", "a.jsonl, line 6"]
    with pytest.raises(RecordProblem, match=r"^a\.jsonl, line 5: column 2: broken JSON"):
        records[1]
    assert load(tmp_path, f"[\n\n{good}]").place(0) == "a.json, record 1"


def test_a_mapped_column_that_no_record_has(tmp_path: Path) -> None:
    rows = [{"q": "what", "a": "red", "photo": "a.png"}, "no object", {"q": "what", "a": "red", "pic": "b.png"}]
    mapped = {"question": "q", "answer": "a"}
    for name, text in {"a.json": json.dumps(rows), "a.jsonl": "\n".join(map(json.dumps, rows))}.items():
        for image in ("photo", "pic"):  # one record that has it is enough
            assert load(tmp_path, text, name, columns={**mapped, "image": image})[0].answer == "red"
        with pytest.raises(UserError, match=r"no record has a column 'foto' \(nearest: 'photo'\).*columns.image"):
            load(tmp_path, text, name, columns={**mapped, "image": "foto"})


@pytest.mark.parametrize("roles", [["human", "gpt"], ["human"], ["human", "gpt", "system"]])
def test_twenty_thousand_turns(roles: list[Any]) -> None:
    turns = [Turn(roles[n % len(roles)], "what is in the picture " * 4) for n in range(20_000)]
    record = Record(1, "", "a.json", (), (*turns, Turn("gpt", "a cat")))
    started = time.process_time()
    ordered = conversation(record)
    assert time.process_time() - started < 1
    assert sum(turn.text.count("picture") for turn in ordered) == 4 * 20_000


def test_special_tokens_written_out_a_hundred_thousand_times() -> None:
    made = tokenizer("byte", "chatml")
    chat = ChatFormat("tokenizer", made, image_id(made), N)
    started = time.process_time()
    text = chat.tokens.harmless("<|im_end|>" * 100_000)
    assert time.process_time() - started < 1
    assert "<|im_end|>" not in text and text.count("\ufdd1") == 100_000
    assert (
        chat.tokens.harmless("a <|im_<|im_end|>end|> <image>b</s>")
        == "a <|im_<\ufdd1|im_end|>end|> <\ufdd1image>b<\ufdd1/s>"
    )


def test_very_many_pictures_are_counted_before_ids_are_made(tmp_path: Path) -> None:
    """200,000 of 576 tokens would take 1.8 GB."""
    made, count = tokenizer("byte", "chatml"), 200_000
    chat = ChatFormat("v1", made, image_id(made), 576)
    turns = (Turn("human", "<image>" * count), Turn("gpt", "a"))
    record = Record(1, "", "a", (ImageRef("0.png"),) * count, turns)
    reads = {"data.max_length 2048": lambda: chat.encode(record, 2048), "any model": lambda: chat.prompt(record)}
    for most, read in reads.items():
        before = peak_bytes()
        with soon_or_one_error(tmp_path), pytest.raises(TooLong, match=rf"take 115,?200,?000 tokens, .*{most}"):
            read()
        assert peak_bytes() - before < 300e6
