"""Going on from another run (``model.start``): its weights exactly, all else new, nothing lost in silence."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.recipe.rules import changed_recipe
from basic_lite.rehearsal.advice import possible_changes
from basic_lite.run import train
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.estimate import estimate
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.export.command import export
from basic_lite.training import loop
from basic_lite.training.assembly import load_for_training
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import OPTIMIZER, TRAINING, open_bundle
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST
from basic_lite.training.refinement_log import RefinementLog
from basic_lite.training.start import find_origin
from basic_lite.training.start_names import resolve_start
from tests.support.runs import (
    WHOLE,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
    weights_of,
    whole_recipe,
)

CPU = torch.device("cpu")
UNNAMED = {"model.llm": None, "model.vision": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two stages, `one` and `two`; never changed."""
    folder = tmp_path_factory.mktemp("earlier")
    run(folder, {"name": "one", "stage": 1, "lora.enabled": False, "training.max_steps": 2})
    # A feature layer and a token that are no defaults: they must come along.
    changes = {**WHOLE, "model.vision_feature_layer": -1, "model.image_token": "<picture>"}
    run(folder, {"name": "two", **changes, "training.max_steps": 3, "training.save_every": 2, "training.keep": 9})
    return folder


def going_on(place: Path, changes: dict[str, Any] | None = None, *, start: str = "two") -> dict[str, Any]:
    """A recipe's changes that start from a run and name no models."""
    return {**WHOLE, **UNNAMED, "model.start": str(place / "runs" / start), "name": "three", **(changes or {})}


def elsewhere(tmp_path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, "output": str(tmp_path / "runs")}


def logits_of(model: Any, image_token_id: int) -> torch.Tensor:
    ids = torch.tensor([[5, 6, *[image_token_id] * 4, 9, 10]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


def test_the_new_run_starts_with_the_old_ones_weights(place: Path) -> None:
    recipe = resolve_start(tiny_recipe(place, going_on(place)), print)
    assert recipe.model.llm == str(place / "llm") and recipe.model.image_token == "<picture>"
    assert recipe.model.vision_feature_layer == -1
    said: list[str] = []
    loaded = load_for_training(recipe, CPU, load_frontend(recipe.model), said.append, origin=find_origin(recipe))
    assert any("projector and LoRA from" in line for line in said)
    old, _ = load_trained(place / "runs" / "two", CPU)
    token = old.parts.image_token_id
    expected = logits_of(old.model, token)
    assert torch.equal(logits_of(loaded.model, token), expected)
    # What a lost adapter would give, or a lost projector.
    fresh = load_for_training(recipe, CPU, load_frontend(recipe.model), said.append)
    assert not torch.allclose(logits_of(fresh.model, token), expected)


def test_optimizer_and_schedule_begin_anew(place: Path, tmp_path: Path) -> None:
    # The first of two steps has the warm-up's rate 0, so it changes nothing.
    changes = elsewhere(tmp_path, going_on(place, {"training.max_steps": 2, "training.save_every": 1}))
    folder = run(place, {**changes, "training.keep": 9, "training.warmup_ratio": 0.5})
    assert_same_weights(folder / "checkpoint-1", place / "runs" / "two" / "final")
    state = json.loads((folder / "checkpoint-1" / TRAINING).read_text())
    assert state["progress"]["step"] == 1
    assert {float(t) for n, t in load_file(folder / "checkpoint-1" / OPTIMIZER).items() if n.endswith("/step")} == {1.0}
    assert [line["step"] for line in steps_of(folder)] == [1, 2]
    final = weights_of(folder / "final")
    old = weights_of(place / "runs" / "two" / "final")
    assert all(not torch.equal(final[name], old[name]) for name in final)


@pytest.mark.long
def test_resume_is_exact_without_the_start(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "runs" / "two", tmp_path / "start")
    changes = going_on(place, {"model.start": str(tmp_path / "start"), "lora.dropout": 0.3, "training.max_steps": 4})
    changes = elsewhere(tmp_path, {**changes, "training.save_every": 2})
    whole = run(place, {**changes, "name": "whole"})
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save_final", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(place, {**changes, "name": "part"})
    shutil.rmtree(tmp_path / "runs" / "part" / "checkpoint-4")
    shutil.rmtree(tmp_path / "start")
    part = run(place, {**changes, "name": "part"}, resume=True)
    assert_same_terms(whole, part, rel=0)
    assert_same_weights(whole / "final", part / "final")
    # The manifest still says where the weights came from.
    manifests = [open_bundle(folder).manifest["started_from"] for folder in (whole, part)]
    assert manifests[0] == manifests[1]
    record = {"key": "model.start", "bundle": str(tmp_path / "start" / "final"), "step": 3}
    assert record.items() <= manifests[0].items()
    assert manifests[0]["manifest_sha256"] == sha256(place / "runs" / "two" / "final" / MANIFEST)
    # The finished run is what it says; without it, the start is needed.
    assert train(tiny_recipe(place, {**changes, "name": "part"}), resume=True, console=quiet()).steps == 4
    with pytest.raises(UserError, match=r"model\.start: there is no folder"):
        run(place, {**changes, "name": "another"})


@pytest.mark.long
def test_tools_need_no_start_either(place: Path, tmp_path: Path) -> None:
    """eval, chat and export open a bundle with ``load_trained``, or its recipe's models."""
    shutil.copytree(place / "runs" / "two", tmp_path / "start")
    folder = run(place, elsewhere(tmp_path, going_on(place, {"model.start": str(tmp_path / "start")})))
    shutil.rmtree(tmp_path / "start")
    result = evaluate_run(folder, place / "data.json", image_dir=place / "images", limit=2, device="cpu")
    assert len(result.predictions) == 2
    assert RunSpeaker(folder, CPU).bundle.recipe.model.image_token == "<picture>"
    assert export(folder, tmp_path / "exported", samples=2, console=quiet())
    resolved = load_recipe(folder / "recipe.yaml")
    assert resolved == open_bundle(folder).recipe and resolved.model.llm == str(place / "llm")
    assert resolved.model.start == str(tmp_path / "start")
    # And a third run goes on from the second.
    third = run(place, elsewhere(tmp_path, going_on(place, {"model.start": str(folder), "name": "four"})))
    assert open_bundle(third).recipe.model.image_token == "<picture>"


@pytest.mark.long
def test_what_the_start_has_learnt_is_evaluated_first(place: Path, tmp_path: Path) -> None:
    """With its last held-out loss, which changes no step."""
    source = {"path": str(place / "data.json"), "image_dir": str(place / "images")}
    changes = elsewhere(tmp_path, {"training.max_steps": 2, "lora.dropout": 0.3, "data.eval": source})
    first = run(place, {**changes, "name": "first"})
    assert [line["step"] for line in log_of(first) if "eval_loss" in line] == [2]
    changes = {**changes, **UNNAMED, "model.start": str(first)}
    found = [run(place, {**changes, "name": "with"}), run(place, {**changes, "name": "without", "data.eval": None})]
    losses = [line for line in log_of(found[0]) if "eval_loss" in line]
    assert [line["step"] for line in losses] == [0, 2] and losses[0]["epoch"] == 0
    assert losses[0]["eval_loss"] == [line for line in log_of(first) if "eval_loss" in line][-1]["eval_loss"]
    assert_same_terms(*found, rel=0)
    assert_same_weights(*(folder / "final" for folder in found))


def test_stage_two_starts_from_stage_one(place: Path, tmp_path: Path) -> None:
    """A start without a LoRA: the recipe's LoRA is fresh, the projector is stage 1's."""
    changes = going_on(place, {"training.max_steps": 1, "training.projector_learning_rate": 0.0}, start="one")
    folder = run(place, elsewhere(tmp_path, changes))
    ours, theirs = weights_of(folder / "final"), weights_of(place / "runs" / "one" / "final")
    assert len(ours) > len(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_the_recipe_that_trained_the_start_goes_on_again_and_again(place: Path, tmp_path: Path) -> None:
    """Its `model.projector` is what the first run began with, and isn't read."""
    one = str(place / "runs" / "one")
    changes = elsewhere(tmp_path, {"model.projector": one, "training.max_steps": 1})
    before = run(place, {**changes, "name": "a"})
    for name in ("b", "c"):
        changes |= {"name": name, "model.start": str(before)}
        assert f"note: model.projector={one} isn't read: model.start takes the projector of {before}\n" in heard(
            place, changes
        )
        folder = run(place, {**changes, "training.projector_learning_rate": 0.0})
        assert load_recipe(folder / "recipe.yaml").model.projector is None
        ours, theirs = (load_file(at / "final" / "projector.safetensors") for at in (folder, before))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        run(place, {**changes, "training.projector_learning_rate": 0.0}, resume=True)
        before = folder


def refused(place: Path, tmp_path: Path, changes: dict[str, Any], match: str, **given: Any) -> None:
    with pytest.raises(UserError, match=match):
        run(place, elsewhere(tmp_path, going_on(place, changes, **given)))
    assert not (tmp_path / "runs" / "three").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lora.rank": 8}, r"another shape .*lora.rank is 8.*Set lora.rank=4$"),
        ({"lora.rank": 8, "lora.alpha": 2.0}, r"lora.rank is 8; lora.alpha is 2.*Set lora.rank=4 lora.alpha=8$"),
        ({"lora.targets": ["v_proj", "q_proj"]}, r"lora.targets is \[v_proj, q_proj\].*Set lora.targets=all-linear$"),
        (
            {"lora.enabled": False},
            r"would be lost. Set lora.enabled=true lora.rank=4 lora.alpha=8 lora.targets=all-linear; "
            r"or, .*model.projector=.*two",
        ),
        ({"model.llm": "gpt2"}, r"had others \(model.llm: .* there, 'gpt2' here\).*model.llm=null"),
        ({"model.base": "llava"}, r"model.base: None there, 'llava' here"),
        ({"model.image_token": "<image>"}, r"image_token: '<picture>' there, '<image>' here.*model.image_token=<pic"),
        ({"model.start": "nowhere"}, "model.start: there is no folder nowhere"),
    ],
)
def test_what_contradicts_the_start_is_refused(
    place: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    refused(place, tmp_path, changes, match)


def test_the_same_names_may_be_given(place: Path) -> None:
    given = {"model.llm": str(place / "runs" / ".." / "llm"), "model.image_token": "<picture>"}
    assert resolve_start(tiny_recipe(place, going_on(place, given)), print).model.vision == str(place / "vision")


def test_impossible_recipes_are_refused_when_they_are_read(place: Path, tmp_path: Path) -> None:
    path, two = tmp_path / "recipe.yaml", place / "runs" / "two"
    path.write_text(dump_recipe(tiny_recipe(place, going_on(place))))
    assert load_recipe(path).model.llm is None
    for start in (two, two / "final"):
        with pytest.raises(UserError, match=r"model.start: the run would start from .*two.* name=…"):
            load_recipe(path, ["name=two", f"model.start={start}"])
    with pytest.raises(UserError, match=r"model.base opens a whole checkpoint"):
        load_recipe(path, ["model.base=a", "model.llm=b"])


def test_a_written_default_counts_as_given(place: Path, tmp_path: Path) -> None:
    """What a recipe file leaves out is the start's; a token that is written must be the start's."""
    path = tmp_path / "recipe.yaml"
    written = dump_recipe(whole_recipe(place)).split("model:")[0]
    rest = dump_recipe(whole_recipe(place)).split("quantization:")[1]
    path.write_text(f"{written}model:\n  start: {place / 'runs' / 'two'}\nquantization:{rest}")
    assert resolve_start(load_recipe(path, ["name=x"]), print).model.image_token == "<picture>"
    with pytest.raises(UserError, match="image_token"):
        resolve_start(load_recipe(path, ["name=x", "model.image_token=<image>"]), print)


def heard(place: Path, changes: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=300)
    dry_run(tiny_recipe(place, changes), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_may_surprise_is_said_before_the_run(place: Path) -> None:
    two = str(place / "runs" / "two")
    names = {"name": "x", "model.vision_feature_layer": -1, "model.image_token": "<picture>"}
    projector = heard(place, {**names, "model.projector": two})
    assert f"warning: model.projector takes the projector alone; the LoRA in {two}/final is not taken" in projector
    assert f"model.start={two} takes both" in projector
    assert "not taken" not in heard(place, {"name": "x", "model.projector": str(place / "runs" / "one")})
    others = {"quantization.mode": "none", "model.dtype": "float32"}
    others |= {"data.template": "v1", "data.image_fit": "square"}
    notes = [line for line in heard(place, going_on(place, others)).splitlines() if f"{two}/final was trained" in line]
    assert len(notes) == 4
    for (key, value), note in zip(others.items(), notes, strict=True):
        assert f" with {key} " in note and f", this run has {value}: its projector and LoRA see " in note
    stage_one = heard(place, going_on(place, {"data.template": "v1", "data.image_fit": "square"}, start="one"))
    assert (
        stage_one.count("was trained with") == 1
        and "image_fit pad, this run has square: its projector sees" in stage_one
    )
    assert "rounds it" in heard(place, going_on(place, {"lora.dtype": "bfloat16"}))
    plain = heard(place, going_on(place))
    assert not any(words in plain for words in ("not taken", "was trained with", "rounds it")) and "LoRA" in plain


@pytest.mark.soak
def test_estimate_and_its_advice_read_no_weights(place: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(place / "runs" / "two", start)
    for weights in start.rglob("*.safetensors"):
        weights.unlink()
    recipe = tiny_recipe(place, going_on(place, {"model.start": str(start)}))
    assert estimate(recipe, console=quiet()).fits
    with pytest.raises(UserError, match=r"Set lora\.rank=4"):
        estimate(changed_recipe(recipe, {"lora.rank": 64}), console=quiet())


@pytest.mark.parametrize(("start", "fixed"), [(None, False), ("one", False), ("two", True), ("gone", True)])
def test_advice_leaves_a_rank_that_the_start_has_set(place: Path, start: str | None, fixed: bool) -> None:
    recipe = tiny_recipe(place, {"lora.rank": 64, "model.start": start and str(place / "runs" / start)})
    found = [key for change, _ in possible_changes(recipe, 4) for key in change]
    assert ("lora.rank" not in found) == fixed and "training.optimizer" in found


def test_a_finished_run_tells_how_to_go_on(place: Path) -> None:
    two = str(place / "runs" / "two")
    base = {"name": "two", "model.vision_feature_layer": -1, "model.image_token": "<picture>"}
    base |= {"training.save_every": 2, "training.keep": 9}
    advice = rf"go on from its weights in a new run with model.start={two} name=NEW"
    for changes in ({"training.max_steps": 9}, {"training.max_steps": 3, "data.template": "plain"}):
        with pytest.raises(UserError, match=rf"--resume: the recipe is not .*(\n.*)*{advice}"):
            run(place, {**base, **changes}, resume=True)
        with pytest.raises(UserError, match=rf"already holds another run .*{advice}.*--overwrite"):
            run(place, {**base, **changes})


def test_only_an_untrained_projector_is_fresh(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh projector's first curve gives no warning; one that was trained may."""
    fresh = []

    def watched(*parts: Any, **options: Any) -> RefinementLog:
        fresh.append(options["fresh"])
        return RefinementLog(*parts, **options)

    monkeypatch.setattr(loop, "RefinementLog", watched)
    run(place, elsewhere(tmp_path, going_on(place, {"training.max_steps": 1})))
    run(place, elsewhere(tmp_path, {"name": "new", "training.max_steps": 1}))
    assert fresh == [False, True]
