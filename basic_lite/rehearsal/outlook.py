"""What a run will take, said before it starts: time, energy, disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from basic_lite.cards import CARDS, Card
from basic_lite.data.check import DataReport
from basic_lite.data.prepare import Prepared
from basic_lite.model.audit import Part
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.batch import Shape
from basic_lite.rehearsal.ceilings import measured_card
from basic_lite.rehearsal.cost import basic_products, evaluation_products, looks_products, mean_sizes
from basic_lite.rehearsal.counts import MicroBatchTime
from basic_lite.rehearsal.disk import disk_lines, disk_of, free_bytes
from basic_lite.rehearsal.hours import ON_A_CPU, CardTimes, Work, time_line
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.planner import Planner
from basic_lite.rehearsal.step import Rehearser
from basic_lite.training.assembly import uses_autocast
from basic_lite.training.batches import Schedule
from basic_lite.training.plan import FIELDS, Plan, given_keys


def work_of(
    recipe: Recipe,
    frontend: Frontend,
    data: Prepared,
    parts: Sequence[Part],
    *,
    half: bool,
    done: int = 0,
    processes: int = 1,
) -> Work:
    """What a run has left to do after ``done`` of its steps.

    Args:
        half: the model's forward is in 16 bit.
        processes: how many share each step, each on a device of its own.
    """
    # The last step of an epoch may have fewer samples, and a run of small data has many of those.
    schedule = Schedule(data.sampler, recipe)
    samples = schedule.samples_after(schedule.steps) - schedule.samples_after(done)
    basic = basic_products(recipe, mean_sizes(recipe, frontend, parts, data.report))
    looks = looks_products(
        recipe,
        frontend,
        mean_sizes(recipe, frontend, parts, data.report, with_image=True),
        steps=schedule.steps,
        samples=schedule.samples_after(schedule.steps),
        half=half,
        done=done,
    )
    products, uncounted = samples * basic + looks, ""
    if data.eval_report is not None:
        evaluations = sum(map(schedule.evaluates, range(done + 1, schedule.steps + 1)))
        evaluations += done == 0 and recipe.model.start is not None
        products += evaluations * evaluation_products(recipe, frontend, parts, data.eval_report)
        uncounted = "answers to held-out questions" if recipe.training.eval_generate else ""
    return Work(schedule.steps - done, samples, products, processes, uncounted)


def product_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The type that a run multiplies in on a device."""
    if uses_autocast(recipe, device):
        return torch.bfloat16
    dtype = pick_dtype(recipe.model.dtype, device)
    compute = recipe.quantization.compute_dtype
    return dtype if recipe.quantization.mode == "none" or compute == "auto" else pick_dtype(compute, device)


def disk_outlook(recipe: Recipe, parts: Sequence[Part], steps: int | None) -> Iterator[str]:
    """What a run writes, against the room that its folder has."""
    folder = Path(recipe.output)
    yield from disk_lines(disk_of(recipe, parts, steps), free_bytes(folder), folder)


def outlook(
    recipe: Recipe,
    frontend: Frontend,
    data: Prepared,
    parts: Sequence[Part],
    device: torch.device,
    *,
    done: int = 0,
    processes: int = 1,
) -> Iterator[str]:
    """Lines about a run on a device of this machine.

    Args:
        done: its steps that are done already.
        processes: how many share each step, each on a device of its own.
    """
    work = work_of(recipe, frontend, data, parts, half=uses_autocast(recipe, device), done=done, processes=processes)
    if work.steps:
        yield time_here(recipe, frontend, data, work, device)
    yield from disk_outlook(recipe, parts, work.steps + done)


def time_here(recipe: Recipe, frontend: Frontend, data: Prepared, work: Work, device: torch.device) -> str:
    """Hours and energy on a device of this machine."""
    if device.type == "cpu":
        return ON_A_CPU
    card = measured_card(device, product_dtype(recipe, device))
    return time_line(work, seconds_on(recipe, frontend, data, work, Machine.here(recipe, device), card), card)


def seconds_on(recipe: Recipe, frontend: Frontend, data: Prepared, work: Work, machine: Machine, card: Card) -> float:
    """How long the work takes on a card, by the recipe's own plan."""
    time = MicroBatchTime(recipe, frontend, machine, Shape.mean(recipe, frontend, data.report))
    return work.seconds(time.sample_seconds(Plan.of(recipe, frontend.layer_count), card), card)


def elsewhere(rehearser: Rehearser, report: DataReport, work: Work) -> CardTimes:
    """The run on cards that aren't here."""
    auto = rehearser.recipe.training.plan == "auto"
    given = given_keys(rehearser.recipe) if auto else frozenset(FIELDS)
    return CardTimes(work, Planner.on_data(rehearser, report, CARDS[0], given), auto)
