"""What a run has to do, and its disk. The count of products has its oracle in ``tests/bench/test_bench.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from basic_lite.cards import Card
from basic_lite.data.prepare import prepare_data
from basic_lite.model.audit import Part, planned_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal.ceilings import products_a_second
from basic_lite.rehearsal.cost import basic_products, forward_products, looks_products, mean_sizes, products
from basic_lite.rehearsal.disk import Disk, disk_lines, disk_of
from basic_lite.rehearsal.hours import ON_A_CPU, rests_on, time_line
from basic_lite.rehearsal.outlook import outlook, work_of
from basic_lite.sizes import GIB
from tests.support.runs import WHOLE, quiet, run, whole_recipe, write_data


def test_the_mean_sample_is_the_datas_own(tmp_path: Path) -> None:
    write_data(tmp_path, 7, text_only=3)
    recipe = whole_recipe(tmp_path, {"training.max_steps": None, "training.epochs": 2.0, "training.global_batch": 4})
    frontend = load_frontend(recipe.model)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    parts = planned_parts(recipe, frontend, torch.float32)
    sizes = mean_sizes(recipe, frontend, parts, data.report)
    assert sizes.tokens == pytest.approx(data.report.lengths.mean()) and sizes.visual == pytest.approx(0.7 * 4)
    with_image = mean_sizes(recipe, frontend, parts, data.report, with_image=True)
    assert with_image.visual == 4 and with_image.queries == with_image.tokens - 4
    # Three steps an epoch, of 4, 4 and 2 samples: 20 samples in all, whatever the batch.
    work = work_of(recipe, frontend, data, parts, half=False)
    assert (work.steps, work.samples) == (6, 20)
    basic = products(sizes)["attention mass"] + products(sizes)["SDS"]
    assert work.products == pytest.approx(20 * basic)
    left = work_of(recipe, frontend, data, parts, half=False, done=4)
    assert (left.steps, left.samples) == (2, 6) and left.products == pytest.approx(6 / 20 * work.products)

    def with_basic(**keys: object) -> float:
        changed = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update=keys)})
        return basic_products(changed, mean_sizes(changed, frontend, parts, data.report))

    assert with_basic(every_n_steps=4) == pytest.approx(basic / 4) and with_basic(enabled=False) == 0
    # Uniform weights need the mass before the step: one more forward.
    assert with_basic(token_weights="uniform") == pytest.approx(basic + forward_products(sizes))
    lines = list(outlook(recipe, frontend, data, parts, torch.device("cpu")))
    assert lines[0] == ON_A_CPU and lines[1].startswith("disk: at most")


def test_a_gates_looks_are_counted_by_their_number(tmp_path: Path) -> None:
    """Counted anew from shapes: of 32 samples, half go through the model twice, the others once; then searches.

    Then the pull is tried once: 16 others once, and searches; 8 twice there and back; 16 twice.
    """
    write_data(tmp_path, 40)
    changes = {"supervision.preset": "measured", "supervision.refinement_batches": 8, "training.max_steps": 2000}
    recipe = whole_recipe(tmp_path, changes)
    frontend = load_frontend(recipe.model)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    parts = planned_parts(recipe, frontend, torch.float32)
    sizes = mean_sizes(recipe, frontend, parts, data.report, with_image=True)
    off = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update={"enabled": False})})
    assert looks_products(off, frontend, sizes, steps=2000, samples=8000, half=False) == 0
    basic = {"gate": False, "layers": 0.5, "layer_weights": "quadratic", "target_norm": "none"}
    plain = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update=basic)})
    work, without = (work_of(one, frontend, data, parts, half=False) for one in (recipe, plain))
    looks = work.products - without.products
    forward = 2 * sizes.tokens * (sizes.llm_weights + sizes.lora_weights) + 4 * sizes.tokens**2 * sizes.D * sizes.L
    forward += 2 * sizes.tower_tokens * sizes.tower_weights
    search = 4 * sizes.V * sizes.D / (sizes.llm_weights * sizes.tokens)  # of a place's four visual tokens
    each = 32 * forward * (3 + (2 + sizes.L + 2) * search) / 2
    trial = forward * (16 * (1 + 2 * search) + 8 * 4 + 16 * 2)
    count = (looks - trial) / each
    assert count == pytest.approx(round(count)) and count >= 1
    assert looks <= 0.011 * work.samples * sum(products(sizes).values())
    last = work_of(recipe, frontend, data, parts, half=False, done=1999)
    assert last.products == pytest.approx(last.samples / work.samples * without.products)


def test_evaluations_are_counted(tmp_path: Path) -> None:
    """A forward for each held-out sample, and the words of its labels; answers are named as what comes on top."""
    write_data(tmp_path, 10, text_only=4)
    held_out = {"data.held_out": 0.3, "training.eval_every": 2, "training.max_steps": 5}
    works, sizes, counted = {}, None, 0
    for name, changes in {
        "none": {"training.max_steps": 5},
        "loss": held_out,
        "answers": {**held_out, "training.eval_generate": 2},
    }.items():
        recipe = whole_recipe(tmp_path, changes)
        frontend = load_frontend(recipe.model)
        data = prepare_data(recipe, frontend, say=lambda text: None)
        parts = planned_parts(recipe, frontend, torch.float32)
        works[name] = [work_of(recipe, frontend, data, parts, half=False, done=done) for done in (0, 2, 4)]
        basic = basic_products(recipe, mean_sizes(recipe, frontend, parts, data.report))
        if data.eval_report is not None:
            sizes = mean_sizes(recipe, frontend, parts, data.eval_report)
            counted = len(data.eval_report.lengths)
            each = counted * (forward_products(sizes) + 2 * sizes.labelled * sizes.D * sizes.V)
            looks = [(work.products - work.samples * basic) / each for work in works[name]]
            assert looks == pytest.approx([3, 2, 1])  # after steps 2, 4 and 5
            started = recipe.model_copy(update={"model": recipe.model.model_copy(update={"start": "runs/earlier"})})
            more = work_of(started, frontend, data, parts, half=False).products - works[name][0].products
            assert more == pytest.approx(each)  # a model that was trained is evaluated before, too
    assert counted and [works[name][0].uncounted for name in works] == ["", "", "answers to held-out questions"]
    card = Card("one", 100, 1000, 25, 24, 300, measured=True)
    lines = [time_line(works[name][0], 60.0, card) for name in works]
    assert [line.count("; answers to held-out questions come on top)") for line in lines] == [0, 0, 1]
    stages = [works["none"][0], works["answers"][0], replace(works["loss"][0], uncounted="evaluations")]
    told = rests_on(*stages, stages[1], measured=True)
    assert told.endswith("; answers to held-out questions come on top; evaluations come on top")


def test_a_timed_product_takes_little_time_and_no_random_number() -> None:
    before = torch.random.get_rng_state()
    assert 1e8 < products_a_second(torch.device("cpu"), torch.float32) < 1e15
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adamw_8bit", marks=pytest.mark.long)])
def test_checkpoints_are_as_large_as_was_said(tmp_path: Path, optimizer: str) -> None:
    """Against the files of a run. Headers, and a table for each matrix of 8-bit states, make the difference."""
    changes = {"training.optimizer": optimizer, "training.save_every": 1, "training.keep": 2, "lora.rank": 512}
    recipe = whole_recipe(tmp_path, changes)
    folder = run(tmp_path, {**WHOLE, **changes})
    disk = disk_of(recipe, planned_parts(recipe, load_frontend(recipe.model), torch.float32), 4)
    assert disk.checkpoints == 3
    last = folder / "checkpoint-4"
    weights = [last / "projector.safetensors", last / "adapter" / "adapter_model.safetensors"]
    assert sum(file.stat().st_size for file in weights) == pytest.approx(disk.weights_bytes, rel=0.05)
    assert (last / "optimizer.safetensors").stat().st_size == pytest.approx(disk.state_bytes, rel=0.1)


def test_too_little_room_is_a_warning() -> None:
    disk = Disk(GIB, 2 * GIB, 3)
    assert disk.most_bytes == 10 * GIB
    (line,) = disk_lines(disk, 10 * GIB, Path("runs"))
    assert line == "disk: at most 10.00 GiB (3 checkpoints of 3.00 GiB, the result 1.00 GiB); 10.00 GiB free"
    line, warning = disk_lines(disk, 9 * GIB, Path("runs"))
    assert warning.startswith("warning: the run writes up to 10.00 GiB to runs, where 9.00 GiB are free")


def test_a_run_of_few_steps_writes_few_checkpoints(tmp_path: Path) -> None:
    recipe = whole_recipe(tmp_path, {"training.save_every": 100, "training.keep": 5})
    part = Part("projector", "Linear", "float32", 10, 10, 40)
    assert [disk_of(recipe, [part], steps).checkpoints for steps in (1, 250, 10_000, None)] == [1, 3, 6, 6]
    assert disk_of(recipe, [part], 1) == Disk(40, 80, 1)


def test_train_says_it_all_before_the_first_step(tmp_path: Path) -> None:
    from basic_lite.run import train

    console = quiet()
    train(whole_recipe(tmp_path), console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("device: CPU (")
    starts = ["device: ", "data.train: ", "parts", "time: ", "disk: ", "BASIC: ", "finished: "]
    places = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places)
