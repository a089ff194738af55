"""A small good recipe, and what is said about a bad one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe

GOOD = """\
name: run
stage: 2
model:
  vision: v
  llm: l
lora:
  enabled: true
data:
  train:
    path: data.json
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the report, without the one that counts them."""
    with pytest.raises(UserError) as caught:
        load_recipe(write_recipe(folder, text), overrides)
    head, *lines = str(caught.value).split("\n")
    count = int(re.search(r"(\d+) problems?:$", head).group(1)) if "problems" in head else 1  # type: ignore[union-attr]
    assert count == len(lines), head
    return [line.strip().removeprefix("recipe.yaml") for line in lines]


def problem(folder: Path, text: str, *overrides: str) -> str:
    (line,) = problems(folder, text, *overrides)
    return line
