"""Answers that are marked as not to be learned are read, and have no labels."""

from __future__ import annotations

from typing import Any

import pytest

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import conversation
from basic_lite.data.memory import records_of
from basic_lite.data.problems import NoSupervisedToken, RecordProblem
from basic_lite.data.record import Record
from basic_lite.data.tokens import IGNORE
from tests.support.data import TEMPLATES, N, image_id, supervised, tokenizer

FORMATS = ["plain", "v1", *TEMPLATES]


def chat(kind: str, form: str) -> ChatFormat:
    own = form if form in TEMPLATES else None
    made = tokenizer(kind, own)
    return ChatFormat("tokenizer" if own else form, made, image_id(made), N)  # type: ignore[arg-type]


def read(*answers: dict[str, Any], user: dict[str, Any] | None = None) -> Record:
    turns = []
    for answer in answers:
        turns += [{"role": "user", "content": "what is it?", **(user or {})}, {"role": "assistant", **answer}]
    return records_of([{"messages": turns}], None)[0]


ONE, TWO, THREE = ({"content": text} for text in ("a red ring", "two", "a blue square"))
OFF = {"weight": 0}


@pytest.mark.parametrize("kind", ["byte", "byte_bos", "spm"])
@pytest.mark.parametrize("form", FORMATS)
def test_labels_of_the_other_answers_are_as_ever(kind: str, form: str) -> None:
    encoder = chat(kind, form)
    whole = encoder.encode(read(ONE, TWO, THREE), 10_000)
    middle = encoder.encode(read(ONE | OFF, TWO, THREE | OFF), 10_000)
    others = encoder.encode(read(ONE, TWO | OFF, THREE), 10_000)
    assert whole.input_ids == middle.input_ids == others.input_ids
    decode = encoder.tokenizer.decode
    # What each of the two learns, the other doesn't; together they learn everything, the ends of answers too.
    assert all(IGNORE in pair for pair in zip(middle.labels, others.labels, strict=True))
    assert [max(pair) for pair in zip(middle.labels, others.labels, strict=True)] == whole.labels
    assert "two" in decode(supervised(middle)) and "red" not in decode(supervised(middle))
    assert "two" not in decode(supervised(others)) and "square" in decode(supervised(others))
    assert encoder.prompt(read(ONE | OFF, TWO | OFF)) == encoder.prompt(read(ONE, TWO))


@pytest.mark.parametrize("mark", [
    {"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": "false"},
    {"loss_weight": 0}, {"loss_scale": 0}, {"loss_mask": 0}, {"trainable": False}, {"train": True, "weight": 0},
], ids=str)  # fmt: skip
def test_the_marks_of_other_programs(mark: dict[str, Any]) -> None:
    turns = conversation(read(ONE | mark, TWO))
    assert [turn.learned for turn in turns if turn.role == "gpt"] == [False, True]
    assert all(turn.learned for turn in conversation(read(ONE, TWO, user=mark)))
    with pytest.raises(NoSupervisedToken, match="all its answers are marked as not to be learned; take the record out"):
        conversation(read(ONE | mark))
    assert conversation(read(ONE | mark), answered=False)[-1].text == "a red ring"


@pytest.mark.parametrize("mark", [
    {"weight": 1}, {"weight": 1.0}, {"train": True}, {"loss": "True"}, {"weight": None}, {"loss": ""},
    {"train_detail": []}, {"train_detail": None}, {"weight": float("nan")},
], ids=str)  # fmt: skip
def test_marks_that_change_nothing(mark: dict[str, Any]) -> None:
    assert read(ONE | mark, TWO) == read(ONE, TWO)


@pytest.mark.parametrize(("mark", "said"), [
    ({"weight": 0.5}, "turn 2 has 'weight' 0.5, and an answer is learned as a whole or not at all; write 1 or 0"),
    ({"loss": "some"}, "turn 2 has 'loss' 'some'"),
    ({"train": [0]}, r"turn 2 has 'train' \[0\]"),
    ({"weight": 10**400}, "turn 2 has 'weight' 1000"),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
     "turn 2 marks parts of its answer .'train_detail'.*remove 'train_detail', or mark the whole answer"),
], ids=str)  # fmt: skip
def test_marks_that_cannot_be_followed_are_refused(mark: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordProblem, match=said):
        read(ONE | mark, TWO)
    read(ONE, user=mark)


def test_answers_in_a_row_are_one_so_their_marks_must_agree() -> None:
    def row(*marks: dict[str, Any]) -> Record:
        answers = [{"role": "assistant", "content": text} | mark for text, mark in zip("abc", marks, strict=False)]
        turns = [
            {"role": "user", "content": "q"},
            *answers,
            {"role": "user", "content": "r"},
            {"role": "assistant", **TWO},
        ]
        return records_of([{"messages": turns}], None)[0]

    assert not conversation(row(OFF, OFF))[1].learned
    with pytest.raises(RecordProblem, match="of two answers in a row one is marked as not to be learned"):
        conversation(row(OFF, {}))


def test_a_template_that_marks_all_answers_as_one() -> None:
    made = tokenizer("byte", "generation")
    joined = "{% generation %}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}{% endgeneration %}"
    made.chat_template = joined
    try:
        encoded = ChatFormat("tokenizer", made, image_id(made), N).encode(read(ONE | OFF, TWO), 10_000)
        assert made.decode(supervised(encoded)) == TWO["content"] + "</s>"
    finally:
        made.chat_template = TEMPLATES["generation"]
