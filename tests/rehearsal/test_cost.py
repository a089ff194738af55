"""Hours, energy and disk before a run. The count of products has its oracle in ``tests/bench/test_bench.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basic_lite.data.prepare import prepare_data
from basic_lite.model.audit import Part, planned_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal import forecast
from basic_lite.rehearsal.cards import CARDS, products_a_second
from basic_lite.rehearsal.cost import a_sample, looks_products, mean_sizes, products
from basic_lite.rehearsal.disk import Disk, disk_lines, disk_of
from basic_lite.rehearsal.forecast import OVERHEAD_S, UTILISATION, Work, cards_table, forecast_here
from basic_lite.rehearsal.outlook import outlook, work_of
from basic_lite.units import GIB
from tests.support.runs import quiet, run, tiny_recipe, write_data


def test_the_mean_sample_is_the_datas_own(tmp_path: Path) -> None:
    write_data(tmp_path, 7, text_only=3)
    recipe = tiny_recipe(tmp_path, {"training.max_steps": None, "training.epochs": 2.0, "training.global_batch": 4})
    frontend = load_frontend(recipe.model)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    parts = planned_parts(recipe, frontend, torch.float32)
    sizes = mean_sizes(recipe, frontend, parts, data.report)
    assert sizes.tokens == pytest.approx(data.report.lengths.mean()) and sizes.visual == pytest.approx(0.7 * 4)
    with_image = mean_sizes(recipe, frontend, parts, data.report, with_image=True)
    assert with_image.visual == 4 and with_image.queries == with_image.tokens - 4
    # Three steps an epoch, of 4, 4 and 2 samples: 20 samples in all, whatever the batch.
    work = work_of(recipe, frontend, data, parts, half=False)
    assert work.steps == 6 and work.micro_batches == pytest.approx(20 / 6 / 2)
    assert work.total == pytest.approx(20 * sum(products(sizes).values()))
    assert work_of(recipe, frontend, data, parts, half=False, done=4).total == pytest.approx(6 / 20 * work.total)

    rare = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update={"every_n_steps": 4})})
    off = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update={"enabled": False})})
    each, without = (a_sample(one, mean_sizes(one, frontend, parts, data.report)) for one in (recipe, off))
    assert a_sample(rare, sizes) == pytest.approx(without + (each - without) / 4)
    lines = list(outlook(recipe, frontend, data, parts, torch.device("cpu")))
    assert lines[0].endswith("small steps; overheads decide how long they take, about 1 s (predicted)") and lines[
        1
    ].startswith("disk: at most")


def test_a_gates_looks_are_counted_by_their_number(tmp_path: Path) -> None:
    """Counted anew from shapes: of 32 samples, half go through the model twice, the others once; then searches."""
    write_data(tmp_path, 40)
    changes = {"supervision.preset": "measured", "supervision.refinement_batches": 8, "training.max_steps": 2000}
    recipe = tiny_recipe(tmp_path, changes)
    frontend = load_frontend(recipe.model)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    parts = planned_parts(recipe, frontend, torch.float32)
    sizes = mean_sizes(recipe, frontend, parts, data.report, with_image=True)
    off = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update={"enabled": False})})
    assert looks_products(off, frontend, sizes, steps=2000, samples=8000, half=False) == 0
    basic = {"gate": False, "layers": 0.5, "layer_weights": "quadratic", "target_norm": "none"}
    plain = recipe.model_copy(update={"supervision": recipe.supervision.model_copy(update=basic)})
    work, without = (work_of(one, frontend, data, parts, half=False) for one in (recipe, plain))
    assert without.looks == 0 and without.per_step == work.per_step
    forward = 2 * sizes.tokens * (sizes.llm_weights + sizes.lora_weights) + 4 * sizes.tokens**2 * sizes.D * sizes.L
    forward += 2 * sizes.tower_tokens * sizes.tower_weights
    search = 4 * sizes.V * sizes.D / (sizes.llm_weights * sizes.tokens)  # of a place's four visual tokens
    each = 32 * forward * (3 + (2 + sizes.L + 2) * search) / 2
    count = work.looks / each
    assert count == pytest.approx(round(count)) and count >= 1
    assert work.looks <= 0.011 * work.total
    assert work_of(recipe, frontend, data, parts, half=False, done=1999).looks == 0


def test_time_is_work_over_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "products_a_second", lambda device, dtype: 1e10)
    monkeypatch.setitem(OVERHEAD_S, "cpu", 5.0)
    work = Work(per_step=2.9e12 * UTILISATION["cpu"], steps=24, micro_batches=2)
    text = forecast_here(work, torch.device("cpu"), torch.float32)
    assert "more likely 2 h 00 min" in text and "predicted, not measured" in text and "kWh" not in text
    for card in CARDS:
        hour = Work(card.tflops * 1e12 * UTILISATION["cuda"] * 36, 100)
        row = next(cells for cells, _ in cards_table(hour).rows if cells[0] == card.name)
        assert tuple(row[1:]) == ("1 h 00 min", f"at most {card.watts / 1000:.2g} kWh")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (99, "99 s"), (150, "2 min"), (3599, "1 h 00 min"), (40000, "11 h"), (3e5, "3.5 days")],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert forecast.hours_text(seconds) == text


def test_a_timed_product_takes_little_time_and_no_random_number() -> None:
    before = torch.random.get_rng_state()
    assert 1e8 < products_a_second(torch.device("cpu"), torch.float32) < 1e15
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_checkpoints_are_as_large_as_was_said(tmp_path: Path, optimizer: str) -> None:
    """Against the files of a run. Headers, and a table for each matrix of 8-bit states, make the difference."""
    changes = {"training.optimizer": optimizer, "training.save_every": 1, "training.keep": 2, "lora.rank": 512}
    recipe = tiny_recipe(tmp_path, changes)
    folder = run(tmp_path, changes)
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
    recipe = tiny_recipe(tmp_path, {"training.save_every": 100, "training.keep": 5})
    part = Part("projector", "Linear", "float32", 10, 10, 40)
    assert [disk_of(recipe, [part], steps).checkpoints for steps in (1, 250, 10_000, None)] == [1, 3, 6, 6]
    assert disk_of(recipe, [part], 1) == Disk(40, 80, 1)


def test_train_says_it_all_before_the_first_step(tmp_path: Path) -> None:
    from basic_lite.run import train

    console = quiet()
    train(tiny_recipe(tmp_path), console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("device: CPU (")
    starts = ["device: ", "data.train: ", "parts", "time: ", "disk: ", "BASIC: ", "finished: "]
    places = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places)
