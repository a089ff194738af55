"""What someone meant who wrote a choice otherwise."""

from __future__ import annotations

import pytest

from basic_lite.choices import meant

DTYPES = ("auto", "float32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("word", "choices", "near"),
    [
        ("gpu", ("auto", "cpu", "cuda"), "cuda"),
        ("CUDA ", ("auto", "cpu", "cuda"), "cuda"),
        ("cpuu", ("auto", "cpu", "cuda"), "cpu"),
        ("bf16", DTYPES, "bfloat16"),
        ("fp16", DTYPES, "float16"),
        ("fp16", ("float32", "bfloat16"), None),
        ("xyz", DTYPES, None),
    ],
)
def test_meant(word: str, choices: tuple[str, ...], near: str | None) -> None:
    assert meant(word, choices) == near
