"""Questions of an evaluation: how long they may be, and what is said of several in one record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from basic_lite.data.records import Record, Turn
from basic_lite.scoring.questions import most_tokens, several_questions


@pytest.mark.parametrize(
    ("changed", "most"),
    [
        ({}, 256),
        ({"rope_type": "linear", "factor": 4.0}, 1024),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"factor": -1.0}, 256),
        ({"factor": "x"}, 256),
    ],
)
def test_scaled_positions_are_read(changed: dict[str, Any], most: int) -> None:
    text = SimpleNamespace(max_position_embeddings=256, rope_parameters={"rope_theta": 1e4, **changed})
    assert most_tokens(text) == most


def test_several_questions_are_told() -> None:
    """It was said of "1 records"."""
    one = Record(1, "", "a.json", (), (Turn("human", "who?"), Turn("gpt", "I"), Turn("human", "why?")))
    assert several_questions([Record(1, "", "a.json", (), one.turns[:1])]) is None
    for records, told in (([one], "1 record with"), ([one, one], "2 records with")):
        assert str(several_questions(records)).startswith(f"note: {told} several questions: only the last one")
