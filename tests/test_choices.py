"""What someone meant who wrote a choice otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.choices import meant, meant_beside

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


def test_meant_beside(tmp_path: Path) -> None:
    (tmp_path / "Photos.csv").touch()
    (tmp_path / ".photos.csv").touch()
    (tmp_path / "photo").mkdir()
    assert meant_beside(tmp_path / "photo.csv") == f"did you mean {(tmp_path / 'Photos.csv').as_posix()}?"
    assert meant_beside(tmp_path / "photos", Path.is_dir) == f"did you mean {(tmp_path / 'photo').as_posix()}?"
    assert meant_beside(tmp_path / "questions.json") == meant_beside(tmp_path / "nowhere" / "photo.csv") == ""
