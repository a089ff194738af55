"""``model.projector_start: matched``: a fresh projector's output is as long as the words, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.taps import hooked
from basic_lite.training.assembly import load_for_training
from basic_lite.training.projector_start import match_projector
from tests.support.runs import assert_same_weights, quiet, tiny_recipe, weights_of

CPU = torch.device("cpu")


def made(folder: Path, changes: dict[str, Any] | None = None, kind: str = "llama") -> tuple[Recipe, Loaded, Prepared]:
    recipe = tiny_recipe(folder, changes, kind=kind)
    frontend = load_frontend(recipe.model)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    return recipe, loaded, prepare_data(recipe, frontend, say=lambda text: None)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("basic", [True, False])
def test_the_output_is_as_long_as_the_words(tmp_path: Path, kind: str, basic: bool) -> None:
    changes = {"supervision.enabled": basic, "quantization.mode": "none", "model.projector_start": "matched"}
    recipe, loaded, data = made(tmp_path, changes, kind)
    parts = loaded.parts
    before = {name: x.clone() for name, x in parts.model.state_dict().items()}
    said: list[str] = []
    match_projector(recipe, loaded, data, CPU, said.append)
    found = []
    with torch.no_grad(), hooked(parts.projector, lambda out: found.append(out.flatten(0, 1).norm(dim=1))):
        for batch in moved(data.batches_with_images(8, 4), CPU):
            parts.model.model(**{k: v for k, v in batch.items() if k != "labels"})
        words = parts.embeddings(loaded.vocabulary_ids).norm(dim=1).mean()
    assert float(torch.cat(found).mean()) == pytest.approx(float(words), rel=1e-5)
    after = parts.model.state_dict()
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    assert changed == [f"model.multi_modal_projector.linear_2.{name}" for name in ("bias", "weight")]
    factor = [(after[name] / before[name]).mean() for name in changed]
    assert float(factor[0]) == pytest.approx(float(factor[1]), rel=1e-5)
    assert len(said) == 1 and f"multiplied by {float(factor[0]):.3g}" in said[0]


def test_no_factor_is_refused(tmp_path: Path) -> None:
    recipe, loaded, data = made(tmp_path, {"model.projector_start": "matched"})
    with torch.no_grad():
        loaded.parts.projector.linear_2.weight.zero_()
        loaded.parts.projector.linear_2.bias.zero_()
    with pytest.raises(UserError, match=r"the mean norm is 0 at the projector's output.*remove model\.projector_start"):
        match_projector(recipe, loaded, data, CPU, lambda text: None)


@pytest.mark.long
def test_a_run_starts_there_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Rates of 0 for the projector leave what the start made; a resumed run is not scaled a second time."""
    still = {"training.projector_learning_rate": 0.0, "training.max_steps": 2, "training.save_every": 1}
    plain = train(tiny_recipe(tmp_path, {**still, "name": "plain"}), console=quiet()).folder
    changes = {**still, "name": "matched", "model.projector_start": "matched"}
    console = quiet()
    matched = train(tiny_recipe(tmp_path, changes), console=console).folder
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("model.projector_start: ") == 1
    one, other = weights_of(plain / "final"), weights_of(matched / "final")
    assert torch.equal(one["linear_1.weight"], other["linear_1.weight"])
    factor = other["linear_2.weight"] / one["linear_2.weight"]
    assert abs(float(factor.mean()) - 1) > 0.01
    torch.testing.assert_close(factor, factor.mean().expand_as(factor))
    (matched / "final").rename(tmp_path / "whole")
    console = quiet()
    train(tiny_recipe(tmp_path, changes), console=console, resume=True, checkpoint=1)
    assert "model.projector_start: " not in console.file.getvalue()  # type: ignore[attr-defined]
    assert_same_weights(tmp_path / "whole", matched / "final")
