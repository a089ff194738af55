"""How the two tasks beside this file read a record of questions.json."""

from pathlib import Path
from typing import Any

from PIL import Image

from basic_lite.scoring.metrics.exact import exact

# The folder of the pictures; here this one, with questions.json.
PICTURES = Path(__file__).parent


def pictures(record: dict[str, Any]) -> list[Image.Image]:
    """The record's pictures, opened; none where it has none."""
    names = record.get("image") or []
    return [Image.open(PICTURES / name) for name in ([names] if isinstance(names, str) else names)]


def question(record: dict[str, Any]) -> str:
    """The first question. lmms-eval hands over the pictures apart from it."""
    return str(record["conversations"][0]["value"]).replace("<image>", "").strip()


def answer(record: dict[str, Any]) -> str:
    """The right answer."""
    return str(record["conversations"][1]["value"])


def exact_match(record: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Score what the model has answered."""
    return {"exact_match": exact(answers[0], [answer(record)], question(record))}
