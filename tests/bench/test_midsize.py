"""The mid-size model of the bench: its samples are as long as it says, and its recipe trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basic_lite.data.prepare import prepare_data
from basic_lite.model.frontend import load_frontend
from basic_lite.run import train
from tests.support.runs import quiet, steps_of

ROOT = Path(__file__).resolve().parents[2]


def test_midsize_samples_are_full_and_its_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import midsize

    parts = midsize.write(tmp_path, midsize.TINY, samples=16)
    recipe = midsize.stage2(parts, max_steps=2)
    frontend = load_frontend(recipe.model)
    assert frontend.tokens_per_image == midsize.TINY.tokens_per_image == 16
    data = prepare_data(recipe, frontend, say=lambda line: None)
    lengths = sorted(data.report.lengths)
    # Two of sixteen are shorter; none is cut, none holds an unknown word.
    assert lengths[2:] == [midsize.TINY.tokens] * 14 and lengths[1] < midsize.TINY.tokens
    for sample in (data.train[0], data.train[1]):
        assert sample["input_ids"][-1] == frontend.tokenizer.eos_token_id == sample["labels"][-1]
        assert frontend.tokenizer.unk_token_id not in sample["input_ids"]
    result = train(recipe, console=quiet())
    steps = steps_of(result.folder)
    assert len(steps) == 2 and all(line["das"] > 0 and line["sds"] > 0 for line in steps)
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in steps)
