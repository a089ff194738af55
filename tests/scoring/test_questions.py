"""Questions of an evaluation: how long they may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from basic_lite.scoring.questions import most_tokens


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
