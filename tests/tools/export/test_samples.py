"""Which records an export is checked with: those that training had, as training had them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from basic_lite.errors import UserError
from basic_lite.tools.export.folder import open_source
from basic_lite.tools.export.samples import choose_samples
from tests.support.bundles import CPU, random_run

LONG = {"from": "human", "value": "<image>\n" + "there " * 100}
DROPPED = {
    "too_long": {"id": 0, "image": "0.png", "conversations": [LONG, {"from": "gpt", "value": "yes"}]},
    "bad_records": {"id": 0, "image": "0.png", "conversations": "nonsense"},
}


def records_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", DROPPED)
def test_what_training_dropped_is_left_out(tmp_path: Path, key: str) -> None:
    source = open_source(random_run(tmp_path, {f"data.{key}": "drop"}), None, "auto", CPU)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([DROPPED[key], *records_of(path)[1:]]))
    assert [sample.record.number for sample in choose_samples(source, 12)] == list(range(2, 13))
    source.bundle.recipe.data.too_long = source.bundle.recipe.data.bad_records = "refuse"
    with pytest.raises(UserError, match="the check can't read the run's data"):
        choose_samples(source, 12)


def test_a_special_token_as_text_of_a_question_is_left_out(tmp_path: Path) -> None:
    """Training breaks it up, and processors read it as the token; in an answer it isn't asked."""
    run, path = random_run(tmp_path), tmp_path / "data.json"
    records = records_of(path)
    records[0]["conversations"][0]["value"] += " </s>"
    records[1]["conversations"][1]["value"] += " </s> <image>"
    path.write_text(json.dumps(records))
    samples = choose_samples(open_source(run, None, "auto", CPU), 12)
    assert [sample.record.number for sample in samples] == list(range(2, 13))
