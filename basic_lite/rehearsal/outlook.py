"""What a run will take, said before it starts: time, energy, disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from basic_lite.data.prepare import Prepared
from basic_lite.model.audit import Part
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.cost import a_sample, looks_products, mean_sizes
from basic_lite.rehearsal.disk import disk_lines, disk_of, free_bytes
from basic_lite.rehearsal.forecast import Work, forecast_here
from basic_lite.training.assembly import uses_autocast
from basic_lite.training.batches import Schedule


def work_of(
    recipe: Recipe, frontend: Frontend, data: Prepared, parts: Sequence[Part], *, half: bool, done: int = 0
) -> Work:
    """The products of the steps that a run has left after ``done`` of them, and of its gate's looks.

    Args:
        half: the model's forward is in 16 bit.
    """
    each = a_sample(recipe, mean_sizes(recipe, frontend, parts, data.report))
    # The last step of an epoch may have fewer samples, and a run of small data has many of those.
    schedule = Schedule(data.sampler, recipe)
    samples = schedule.samples_after(schedule.steps) - schedule.samples_after(done)
    looks = looks_products(
        recipe,
        frontend,
        mean_sizes(recipe, frontend, parts, data.report, with_image=True),
        steps=schedule.steps,
        samples=schedule.samples_after(schedule.steps),
        half=half,
        done=done,
    )
    left = schedule.steps - done
    a_step = samples / max(left, 1)
    return Work(each * a_step, left, max(a_step / recipe.training.micro_batch, 1), looks)


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
    work = work_of(recipe, frontend, data, parts, half=uses_autocast(recipe, device), done=done)
    if work.steps:
        # Processes on a CPU share its cores.
        devices = processes if device.type == "cuda" else 1
        yield forecast_here(work, device, product_dtype(recipe, device), devices)
    yield from disk_outlook(recipe, parts, work.steps + done)
