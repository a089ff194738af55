"""Words that the tokenizer lacks are counted as by hand, and a run says so before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from basic_lite.data.chat import ChatFormat
from basic_lite.data.prepare import prepare_data
from basic_lite.data.record import Record, Turn
from basic_lite.data.unknown_words import LOOKED_AT, MANY, spread, unknown_words
from basic_lite.model.frontend import load_frontend
from basic_lite.training.assembly import doubts
from tests.support.runs import tiny_recipe, write_data


def record(asked: str, said: str) -> Record:
    return Record(1, "", "x", (), (Turn("human", asked), Turn("gpt", said)))


def test_shares_are_those_of_counting(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    frontend = load_frontend(recipe.model)
    tokenizer = frontend.tokenizer
    chat = ChatFormat.of("plain", frontend)
    known = "what colour is it ?"
    assert tokenizer.unk_token_id not in tokenizer(known, add_special_tokens=False)["input_ids"]
    assert not list(unknown_words(chat, [record(known, "it is red")], [0], 99))
    records = [record(known, "it is red"), record(f"{known} zorro zirro", "zanzibar zebra")]
    answers, questions = unknown_words(chat, records, range(2), 99)
    # Nothing predicts a text's first token, and the end of an answer is no word.
    assert answers.share == pytest.approx(1 / 3) and answers.share > MANY
    assert questions.share == pytest.approx(2 / 12) and "17% of the words of the questions" in str(questions)
    assert "so it can't learn them; take another model" in str(answers)


def test_records_are_spread_over_the_data() -> None:
    assert spread(0) == [] and spread(1) == [0] and spread(5) == [0, 1, 2, 3, 4]
    many = spread(10_000)
    assert len(many) == LOOKED_AT and many[0] == 0 and many[-1] == 9_999


def test_a_run_warns_of_answers_that_it_cannot_learn(tmp_path: Path) -> None:
    write_data(tmp_path)
    recipe = tiny_recipe(tmp_path)
    frontend = load_frontend(recipe.model)

    def said() -> list[str]:
        return [text for text in doubts(recipe, prepare_data(recipe, frontend, say=str)) if "doesn't know" in text]

    assert said() == []
    path = tmp_path / "data.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["conversations"][1]["value"] = "ein roter Kreis auf blauem Grund"
    path.write_text(json.dumps(rows))
    (text,) = said()
    assert text.startswith("the model doesn't know ") and "% of the words of the answers (<unk> stands" in text
