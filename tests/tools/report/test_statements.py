"""What the report says of a run that has little: of one that was killed early, or that BASIC had no part in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from basic_lite.errors import UserError
from basic_lite.tools.report.facts import read_run
from basic_lite.tools.report.page import cards, render

COUNTS = {"used": 3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed before its first evaluation and its first checkpoint."""
    write(tmp_path, {"step": 1, "lm": 2.0})
    (tmp_path / "parts.json").write_text('[{"part": "LLM"}]')
    (tmp_path / "data.json").write_text(json.dumps({"train": COUNTS, "eval": COUNTS}))
    return tmp_path


def write(run: Path, *lines: dict[str, Any]) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def notes(run: Path) -> dict[str, str]:
    return {card.title: card.note for card in cards(read_run(run))}


def test_what_is_not_measured_says_what_measures_it(run: Path) -> None:
    """Held-out data is there before it is looked at; a run without such data has none to ask about."""
    assert notes(run)["Training loss"] == "nats a token; the held-out data wasn't looked at yet"
    assert notes(run)["Exact match"].endswith("basic-lite eval RUN --held-out")
    (run / "data.json").write_text(json.dumps({"train": COUNTS}))
    assert notes(run)["Training loss"].startswith("no data was held out")
    assert notes(run)["Exact match"].endswith("basic-lite eval RUN --data FILE")
    (run / "data.json").unlink()
    write(run, {"step": 1, "lm": 2.0}, {"step": 1, "eval_loss": 2.0})
    assert notes(run)["Exact match"].endswith("basic-lite eval RUN --held-out")


def test_a_folder_beside_the_run_leads_to_it(run: Path, tmp_path: Path) -> None:
    (run / "final").mkdir()
    with pytest.raises(UserError, match=f"{run}/final is part of a run; give that: {run}$"):
        read_run(run / "final")
    holder = tmp_path.parent / "holder"
    for name in ("one", "two"):
        shutil.copytree(run, holder / name)
    with pytest.raises(UserError, match="holder holds runs and is none: one, two; give one of them"):
        read_run(holder)
    with pytest.raises(UserError, match="is no run folder"):
        read_run(tmp_path.parent / "none")
    (run / "log.jsonl").unlink()
    with pytest.raises(UserError, match="nothing to report"):
        read_run(run)


def test_a_gate_that_never_looked_is_said(run: Path) -> None:
    assert notes(run)["BASIC"] == "this run trains as LLaVA does"
    (run / "recipe.yaml").write_text("supervision: {enabled: true, gate: true}\n")
    assert notes(run)["BASIC"].startswith("its premise wasn't judged")
    (run / "recipe.yaml").write_text("supervision: {enabled: false, gate: true}\n")
    assert notes(run)["BASIC"] == "this run trains as LLaVA does"


def test_texts_of_data_have_their_own_direction(run: Path) -> None:
    asked = {"picture": "p.png", "question": "מה זה?", "answer": "", "reference": "חתול!", "number": 1}
    write(run, {"step": 1, "lm": 2.0}, {"step": 1, "answers": [asked]})
    text = render(read_run(run))
    assert "<bdi>מה זה?</bdi>" in text and "<bdi>חתול!</bdi>" in text and "<bdi>(nothing)</bdi>" in text
