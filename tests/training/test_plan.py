"""`training.plan: auto`: what a run takes, says and keeps; its result is the recipe's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from basic_lite.data.check import DataReport
from basic_lite.errors import Interrupted, UserError
from basic_lite.model import offload
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.recipe.rules import accumulation
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import choice
from basic_lite.rehearsal.choice import settle_plan
from basic_lite.run import train
from basic_lite.training.plan import Plan, given_keys
from basic_lite.training.processes import Processes
from basic_lite.training.step import TrainStep
from tests.support.runs import assert_same_terms, assert_same_weights, log_of, quiet, whole_recipe


def auto(folder: Path, changes: dict[str, Any] | None = None, *, free: bool = True) -> Recipe:
    """A tiny recipe whose plan is chosen; ``free``: the micro-batch too."""
    recipe = whole_recipe(folder, {"training.global_batch": 8, "training.plan": "auto", **(changes or {})})
    if not free:
        return recipe
    tree = recipe.model_dump(exclude_unset=True)
    del tree["training"]["micro_batch"]
    return Recipe.model_validate(tree)


def plan_of(run: Path) -> Plan:
    return Plan.of(load_recipe(run / "recipe.yaml"), 4)


@pytest.mark.long
def test_the_result_is_the_recipes_own(tmp_path: Path) -> None:
    changes = {"training.global_batch": 8, "training.micro_batch": 2}
    manual = train(whole_recipe(tmp_path, {**changes, "name": "manual"}), console=quiet()).folder
    console = quiet()
    pinned = train(auto(tmp_path, {**changes, "name": "pinned"}, free=False), console=console).folder
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    # Only recomputation was chosen: the same bits.
    assert plan_of(manual) == Plan(2, 4, 4) and plan_of(pinned) == Plan(2, 0, 4)
    assert_same_weights(manual / "final", pinned / "final")
    assert "plan: micro-batch 2, no layer recomputed: needs" in said and "the same result" in said
    assert "note: the recipe itself gives training.micro_batch=2, so they were not chosen" in said
    free = train(auto(tmp_path, {"name": "free"}), console=quiet()).folder
    assert plan_of(free).recomputed == 0
    assert_same_terms(manual, free, rel=1e-5)
    assert_same_weights(manual / "final", free / "final", rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_run_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = auto(tmp_path, {"training.save_every": 1}, free=False)
    update = TrainStep.update

    def stops(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", stops)
        with pytest.raises(Interrupted):
            train(recipe, console=quiet())
    before = plan_of(tmp_path / "runs/tiny")
    assert before.recomputed == 0, "else a plan that is chosen anew is the same"
    monkeypatch.setattr(choice, "available_bytes", lambda device: 1)  # nothing would fit now
    console = quiet()
    resumed = train(recipe, resume=True, console=console).folder
    assert f"plan: {before}, as the run had it" in console.file.getvalue()  # type: ignore[attr-defined]
    assert plan_of(resumed) == before


@pytest.mark.parametrize("whole, had, count, now", [(24, 8, 3, 8), (24, 8, 4, 6), (12, 4, 2, 3), (8, 4, 8, 1)])
def test_a_kept_micro_batch_divides_over_the_processes_there_are(
    tmp_path: Path, whole: int, had: int, count: int, now: int
) -> None:
    recipe = auto(tmp_path, {"training.global_batch": whole})
    earlier = Plan(had, 2, 4).applied(recipe)
    said: list[str] = []
    frontend, report = load_frontend(recipe.model), cast("DataReport", None)  # a plan that stays needs no data
    device, processes = torch.device("cpu"), cast(Processes, SimpleNamespace(count=count))
    settled = settle_plan(recipe, frontend, report, device, said.append, earlier=earlier, processes=processes)
    assert Plan.of(settled, 4) == Plan(now, 2, 4)
    assert accumulation(settled, count) * now * count == whole
    lowered = f"the run had micro-batch {had}, which on each of {count} processes does not divide"
    assert len(said) == 1 and f"plan: micro-batch {now}," in said[0]
    assert (lowered in said[0]) == (now != had) and ("as the run had it" in said[0]) == (now == had)


def test_a_key_that_is_given_to_a_continued_run_is_told_from_what_it_had(tmp_path: Path) -> None:
    recipe, said = auto(tmp_path, {"training.micro_batch": 4}, free=False), list[str]()
    earlier, frontend, report = Plan(2, 0, 4).applied(recipe), load_frontend(recipe.model), cast("DataReport", None)
    settled = settle_plan(recipe, frontend, report, torch.device("cpu"), said.append, earlier=earlier)
    assert Plan.of(settled, 4) == Plan(4, 0, 4)
    had = "the run had micro-batch 2, no layer recomputed, and now training.micro_batch=4 is given"
    assert said == [f"plan: micro-batch 4, no layer recomputed: {had}; the same result"]


@pytest.mark.long
def test_where_nothing_fits_the_leanest_plan_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "available_bytes", lambda device: 1)
    console = quiet()
    folder = train(auto(tmp_path, {"training.max_steps": 1}), console=console).folder
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "warning: no plan fits: the one that needs least, micro-batch 1" in said and "basic-lite estimate" in said
    assert plan_of(folder).micro_batch == 1


def test_what_a_file_gives_is_known_and_kept(tmp_path: Path) -> None:
    recipe = auto(tmp_path)
    assert given_keys(recipe) == frozenset()
    path = tmp_path / "recipe.yaml"
    text = dump_recipe(recipe)
    keys = ("micro_batch:", "gradient_checkpointing:", "offload_activations:", "tower_on_host:")
    path.write_text("\n".join(line for line in text.splitlines() if not line.strip().startswith(keys)))
    assert given_keys(load_recipe(path)) == frozenset()
    assert given_keys(load_recipe(path, ["training.micro_batch=2"])) == {"training.micro_batch"}
    # The resolved recipe of a run names all of them: it is that plan again.
    path.write_text(text)
    assert len(given_keys(load_recipe(path))) == 4


def test_out_of_memory_falls_to_the_next_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next plan's run is the one that began so, and a resumed run begins with it."""
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    common = {"lora.dropout": 0.2, "training.gradient_checkpointing": 1, "training.save_every": 2}
    plain = train(whole_recipe(tmp_path, {**common, "name": "plain"}), console=quiet()).folder
    plans = [Plan(2, 3, 4), Plan(2, 4, 4, True)]
    loss, asked = TrainStep.loss, []

    def little(self: Any, *args: Any, **rest: Any) -> Any:
        result = loss(self, *args, **rest)
        if len(asked) < len(plans) and self.parts.layers[0].training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    def next_plan(failed: Plan) -> Plan:
        asked.append(failed)
        return plans[len(asked) - 1]

    monkeypatch.setattr(choice, "next_plan_finder", lambda *rest: next_plan)
    console = quiet()
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "loss", little)
        fallen = train(whole_recipe(tmp_path, {**common, "name": "fallen"}), console=console).folder
    assert asked == [Plan(2, 1, 4), Plan(2, 3, 4)]
    assert_same_weights(plain / "final", fallen / "final")
    assert_same_terms(plain, fallen, rel=0)
    records = [line["out_of_memory"] for line in log_of(fallen) if "out_of_memory" in line]
    assert [record["plan"] for record in records] == [str(plan) for plan in plans]
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "out of memory in step 1 with micro-batch 2, 1 of 4 layers recomputed: it starts again with" in said
    assert "Set training.gradient_checkpointing=3 to begin with that" in said
    console = quiet()
    resumed = train(whole_recipe(tmp_path, {**common, "name": "fallen"}), resume=True, checkpoint=2, console=console)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"the run ran out of memory before: it continues with {plans[1]}" in said
    assert_same_weights(plain / "final", resumed.bundle)


def test_without_a_planner_a_single_sample_has_its_layers_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, tried = TrainStep.loss, []

    def little(self: Any, batch: Any, *args: Any, **rest: Any) -> Any:
        again = sum(layer.gradient_checkpointing for layer in self.parts.layers)
        tried.append((len(batch["input_ids"]), again))
        if tried[-1] != (1, 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch, *args, **rest)

    monkeypatch.setattr(TrainStep, "loss", little)
    changes = {"training.gradient_checkpointing": 2, "training.max_steps": 1}
    train(whole_recipe(tmp_path, changes), console=quiet())
    assert tried[:3] == [(2, 2), (1, 2), (1, 4)] and set(tried[3:]) == {(1, 4)}


def test_a_planner_that_fails_leaves_the_recovery_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TrainStep.loss
    tried: list[tuple[int, int]] = []
    asked: list[Plan] = []

    def little(self: Any, batch: Any, *args: Any, **rest: Any) -> Any:
        tried.append((len(batch["input_ids"]), sum(layer.gradient_checkpointing for layer in self.parts.layers)))
        if tried[-1] != (1, 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch, *args, **rest)

    def fails(failed: Plan) -> Plan:
        asked.append(failed)
        raise RuntimeError("no such operation\nof fake tensors")

    monkeypatch.setattr(TrainStep, "loss", little)
    monkeypatch.setattr(choice, "next_plan_finder", lambda *rest: fails)
    console = quiet()
    train(whole_recipe(tmp_path, {"training.gradient_checkpointing": 2, "training.max_steps": 1}), console=console)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert tried[:3] == [(2, 2), (1, 2), (1, 4)] and set(tried[3:]) == {(1, 4)} and asked == [Plan(2, 2, 4)]
    looked, failed = (
        "looking for a plan that needs less",
        "no plan could be looked for (RuntimeError: no such operation",
    )
    assert said.count(looked) == said.count(failed) == 1 and said.index(looked) < said.index(failed)


def test_auto_is_free_to_change_in_a_continued_run(tmp_path: Path) -> None:
    folder = train(whole_recipe(tmp_path, {"training.save_every": 2}), console=quiet()).folder
    other = whole_recipe(tmp_path, {"training.save_every": 2, "training.plan": "auto"})
    assert train(other, resume=True, console=quiet()).folder == folder
    with pytest.raises(UserError, match="already holds"):
        train(other, console=quiet())
