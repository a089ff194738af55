"""The command ``estimate``: what it prints, what it advises, and that every shipped recipe fits its card."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from basic_lite.cli import app
from basic_lite.data.prepare import prepare_data
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.model.known import known_frontend
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.recipe.load import read_override
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Rehearser
from basic_lite.rehearsal.hours import ON_A_CPU
from basic_lite.rehearsal.planner import ROOM
from basic_lite.tools.estimate import Estimate, estimate, machine_of, planned_steps
from basic_lite.tools.shipped import CARD
from basic_lite.training.batches import Schedule
from tests.support.runs import whole_recipe, write_data
from tests.support.shapes import shape_recipe, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, "tiny")
    return root


def run(recipe: Recipe, gpu_gib: float | None, **options: Any) -> tuple[Estimate, str]:
    console = Console(file=io.StringIO(), width=160)
    found = estimate(recipe, gpu=gpu_gib, console=console, **options)
    return found, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.long
def test_a_recipe_that_fits(shapes: Path) -> None:
    found, text = run(shape_recipe(shapes, "tiny", micro_batch=2), 8)
    assert found.fits and not found.advice
    for part in ("NF4 weights", "projector", "LoRA", "gradients", "optimizer", "activations kept", "BASIC", "LM loss"):
        assert part in text
    assert "fits a card of 8 GiB" in text and "BASIC adds" in text
    assert "KiB" in text and "MiB" in text and not re.search(r"\b0(\.0+)? (GiB|MiB)", text), "no amount of memory is 0"
    assert " 0.00 " not in text
    assert found.rehearsal.needed_bytes == found.rehearsal.peak_bytes + 2**29
    assert found.fastest is not None and found.fastest.rehearsed and found.plans
    assert re.search(r"^micro-batch \d, no layer recomputed +\d.* fastest that fits$", text, re.MULTILINE)
    assert re.search(r"^micro-batch 2, all 6 layers recomputed .* 1\.00  this recipe$", text, re.MULTILINE)
    assert "the fastest plan: " in text and "training.gradient_checkpointing=false" in text


@pytest.mark.long
def test_a_recipe_whose_plan_is_chosen(shapes: Path) -> None:
    recipe = shape_recipe(shapes, "tiny", micro_batch=2, training={"plan": "auto"})
    found, text = run(recipe, 8)
    assert found.fits and found.fastest is not None and found.own.plan == found.fastest.plan
    assert found.own.plan.micro_batch == 2, "the recipe gives it"
    assert found.rehearsal.recomputed == 0 and "of all layers" in text
    assert "this recipe" not in text and "the fastest plan:" not in text


@pytest.mark.soak
def test_another_plan_is_advised_where_one_is_enough(shapes: Path) -> None:
    recipe = shape_recipe(shapes, "tiny", micro_batch=16, global_batch=48)
    whole, _ = run(recipe, 80)
    gib = whole.rehearsal.needed_bytes / 2**30
    found, text = run(recipe, gib - 0.1)
    assert not found.fits and found.fastest is not None
    (advice,) = found.advice
    assert advice.fits and advice.overrides == (found.fastest.plan.overrides(found.own.plan),)
    assert "doesn't fit" in text and f"  {advice.overrides[0]}  →  " in text
    keys = dict(override.split("=") for override in advice.overrides[0].split())
    changed = {name.split(".")[1]: read_override(value) for name, value in keys.items()}
    training = recipe.training.model_copy(update=changed)
    assert run(recipe.model_copy(update={"training": training}), gib - 0.1)[0].fits


@pytest.mark.soak
def test_advice_goes_on_until_it_fits(shapes: Path) -> None:
    training = {"gradient_checkpointing": False, "optimizer": "adamw"}
    recipe = shape_recipe(shapes, "tiny", micro_batch=1, max_length=2048, rank=256, training=training)
    found, text = run(recipe, 1.0)
    changed = [advice.overrides[0].split("=")[0] for advice in found.advice]
    # Copies to the host come after what is all but free, and before what costs exactness.
    assert changed[:6] == [
        "training.gradient_checkpointing",
        "training.optimizer",
        "training.offload_activations",
        "model.tower_on_host",
        "lora.dtype",
        "lora.rank",
    ]
    needed = [advice.needed_bytes for advice in found.advice]
    assert needed == sorted(needed, reverse=True)
    assert all(not advice.fits for advice in found.advice[:-1])
    assert found.advice[-1].fits or "no further change of a key makes it fit" in text
    rest = [found.rehearsal.needed_bytes, *needed]
    assert [advice.saved_bytes for advice in found.advice] == [a - b for a, b in itertools.pairwise(rest)]


@pytest.mark.soak
def test_no_more_layers_are_recomputed_than_must_be(shapes: Path) -> None:
    def with_layers(setting: bool | int, gib: float) -> tuple[Estimate, str]:
        training = {"gradient_checkpointing": setting}
        recipe = shape_recipe(shapes, "tiny", micro_batch=1, max_length=2048, training=training, global_batch=1)
        return run(recipe, gib)

    none, every = (with_layers(setting, 80)[0].rehearsal.needed_bytes / 2**30 for setting in (False, True))
    enough = (every + 0.4 * (none - every)) / ROOM
    found, _ = with_layers(True, enough)
    assert found.fastest is not None
    count = found.fastest.plan.recomputed
    assert 0 < count < 6
    own, text = with_layers(count, enough)
    assert own.rehearsal.needed_bytes == found.fastest.needed_bytes <= enough * ROOM * 2**30
    assert f"of {6 - count} layers; of the other {count} their inputs (checkpointing)" in text
    assert with_layers(count - 1, enough)[0].rehearsal.needed_bytes > enough * ROOM * 2**30


@pytest.mark.soak
def test_offloading_is_enough_before_the_rank_is_lowered(shapes: Path) -> None:
    keys: dict[str, Any] = {"micro_batch": 1, "max_length": 2048, "rank": 64}
    recipe = shape_recipe(shapes, "tiny", **keys)
    activations = recipe.training.model_copy(update={"offload_activations": True})
    one = recipe.model_copy(update={"training": activations})
    both = one.model_copy(update={"model": recipe.model.model_copy(update={"tower_on_host": True})})
    needed = [run(r, 80)[0].rehearsal.needed_bytes / 2**30 for r in (one, both)]
    found, text = run(recipe, sum(needed) / 2 / ROOM)
    # A plan is advised, and which one is the planner's business: it copies to the host, and changes no result.
    assert len(found.advice) == 1 and found.fastest is not None
    keys = [override.split("=")[0] for override in found.advice[0].overrides[0].split()]
    assert "model.tower_on_host" in keys and "lora.rank" not in keys and "the same result" in text
    changed, _ = run(found.fastest.plan.applied(recipe), sum(needed) / 2 / ROOM)
    assert changed.fits and changed.rehearsal.needed_bytes == found.advice[0].needed_bytes


@pytest.mark.soak
def test_what_a_cpu_refuses_is_not_advised_for_one(shapes: Path) -> None:
    training = {"device": "cpu", "optimizer": "adamw"}
    found, _ = run(shape_recipe(shapes, "tiny", max_length=1024, training=training), 0.6)
    given = [override for advice in found.advice for override in advice.overrides]
    assert given[0] == "training.optimizer=adamw_8bit" and not any("host" in g or "offload" in g for g in given)


@pytest.mark.long
def test_a_recipe_for_the_cpu_has_this_machines_memory(tmp_path: Path) -> None:
    """And no time is predicted. For a card, where the data isn't here, the line of the time says what it assumes."""
    one = {"training.max_steps": None, "training.global_batch": 1, "training.micro_batch": 1}
    recipe, own = whole_recipe(tmp_path, one), psutil.virtual_memory().total / 2**30
    (tmp_path / "data.json").write_text("nothing")
    text = run(recipe, None)[1]
    assert re.search(
        rf"fits this machine's memory of {own:.4g} GiB, with .* to spare \(the plan leaves 2 % of it free\)", text
    )
    assert ON_A_CPU in text
    text = run(whole_recipe(tmp_path, one | {"training.device": "auto"}), 8)[1]
    assert "(assumed, since data.train isn't read here; `train --dry-run` reads it)" in text and " kWh" in text


def test_steps_are_those_of_the_run_where_its_data_is_here(tmp_path: Path) -> None:
    write_data(tmp_path, 11)
    recipe = whole_recipe(
        tmp_path, {"training.max_steps": None, "training.epochs": 2.5, "data.held_out": 0.2, "training.device": "auto"}
    )
    data = prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None)
    assert planned_steps(recipe) == (Schedule(data.sampler, recipe).steps, f"{len(data.train)} records")
    assert planned_steps(recipe)[0] == 8
    (tmp_path / "data.json").unlink()
    assert planned_steps(recipe)[0] is None and planned_steps(whole_recipe(tmp_path)) == (4, "")


@pytest.mark.soak
def test_what_rests_on_the_host_has_a_line(shapes: Path) -> None:
    recipe = shape_recipe(shapes, "tiny", micro_batch=4, training={"offload_activations": True})
    _, text = run(recipe, 8)
    # Six layers' inputs [4, 1024, 512] in bf16.
    assert re.search(r"on the host +24 MiB  pinned: each recomputed layer's input\n", text)
    with_tower = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tower_on_host": True})})
    found, text = run(with_tower, 8)
    assert "pinned: each recomputed layer's input and the vision tower" in text
    assert "frozen; on the card for its forward only" in text
    assert found.rehearsal.host_bytes > 300e6 * 2
    assert "pinned" not in run(shape_recipe(shapes, "tiny"), 8)[1]


@pytest.mark.soak
def test_it_advises_nothing_that_can_not_be_set(shapes: Path) -> None:
    recipe = shape_recipe(shapes, "tiny", micro_batch=1, max_length=2048, rank=64)
    found, text = run(recipe, 0.6)
    assert not found.advice[-1].fits and "use a smaller LLM or more memory" in text
    for advice in found.advice:
        for override in advice.overrides:
            key, value = override.split("=")
            section, name = key.split(".")
            assert name in type(getattr(recipe, section)).model_fields and value


def test_measuring_without_a_gpu_is_refused(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--measure runs two real steps, but torch sees no GPU"):
        run(shape_recipe(shapes, "tiny"), 8, measure=True)


def test_no_room_for_an_image_is_refused(shapes: Path) -> None:
    with pytest.raises(UserError, match=r"data.max_length is 512, too short for 576 image tokens"):
        run(shape_recipe(shapes, "tiny", max_length=512), 8)


@pytest.mark.long
def test_the_command(shapes: Path) -> None:
    overrides = [f"model.vision={shapes / 'tower-336'}", f"model.llm={shapes / 'tiny'}"]
    overrides.append("training.micro_batch=2")  # fewer plans to look at
    result = CliRunner().invoke(app, ["estimate", "7b_qlora", *overrides, "--gpu", "24"])
    assert result.exit_code == 0, result.output
    assert "fits a card of 24 GiB" in result.output and "micro-batch" in result.output


# In each CI; the others are soak tests.
IN_CI = {"7b_8gb", "7b_qlora", "small_pretrain"}
ON_A_CARD = [
    pytest.param(path, id=path.stem, marks=pytest.mark.long if path.stem in IN_CI else pytest.mark.soak)
    for path in shipped_recipes()
    if not path.stem.startswith("demo_")
]


@pytest.mark.parametrize("path", ON_A_CARD)
def test_shipped_recipes_fit_the_card_that_they_name(path: Path) -> None:
    card = CARD.search(path.read_text(encoding="utf-8"))
    assert card is not None, "a recipe's first lines name its card: `# Card: 24 GB; 17.1 GiB needed`"
    recipe = load_recipe(path)
    frontend = known_frontend(recipe.model)
    assert frontend is not None, "an estimate of a shipped recipe needs no network"
    needed_gib = Rehearser(recipe, frontend, machine_of(recipe)).rehearse().needed_bytes / 2**30
    assert needed_gib == pytest.approx(float(card["needed_gib"]), abs=0.1)
    # A card sold as 24 GB shows 23.5 to 24 GiB.
    assert needed_gib <= 0.96 * int(card["gb"])
