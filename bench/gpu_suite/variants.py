"""What the planner believes: a 7B step with all, half and none of the LLM's layers recomputed; tokens/s and memory.

The same step as ``bench.step_suite``'s with one sample a micro-batch, so that no recomputation fits a card of 24 GiB.
Beside the measured peak stands the rehearsed one. A variant that runs out of memory says so, and the others go on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch

from basic_lite.console import quiet_libraries
from basic_lite.model.adapt import recompute
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, rehearse
from basic_lite.sizes import GIB
from basic_lite.tools.measure import LongestStep, measure_step, predicted_bytes
from bench import measure
from bench.gpu_suite.model import add_arguments, device_of, longest_step, recipe_of
from bench.tables import columns, number, write_json

MOST_STEPS = 20
ALL = ("all", "half", "none")


@dataclass
class Variant:
    """Steps with some number of layers recomputed, BASIC on."""

    name: str
    layers: int
    predicted_bytes: int
    tokens: int = 0  # of a measured step
    measured_bytes: int | None = None
    step_ms: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        return 1e3 * self.tokens / median(self.step_ms) if self.step_ms else None


def variants_of(recipe: Recipe, names: Sequence[str], layers: int, device: torch.device) -> Iterator[Variant]:
    """Those named, each with its rehearsed peak."""
    frontend, counts = load_frontend(recipe.model), {"all": layers, "half": layers // 2, "none": 0}
    for name in names:
        count = counts[name]
        changed = changed_recipe(recipe, {"training.gradient_checkpointing": count})
        machine = Machine.here(changed, device)
        yield Variant(f"recompute {name}", count, predicted_bytes(rehearse(changed, frontend, machine)))


def run(step: LongestStep, variant: Variant, device: torch.device, seconds: float) -> None:
    """Measure one variant's memory, then time it for so long."""
    recompute(step.loaded.parts, variant.layers)
    variant.tokens = step.micro_batch_tokens * len(step.batches)
    try:
        step()  # warms up, makes the optimizer's state
        if device.type == "cuda":
            variant.measured_bytes = measure_step(step).peak_bytes
        else:
            held = measure.held_bytes(step.loaded.model, step.step.optimizer)
            variant.measured_bytes = held + measure.peak_bytes(step, device)
        until = time.monotonic() + seconds
        while len(variant.step_ms) < 2 or (len(variant.step_ms) < MOST_STEPS and time.monotonic() < until):
            started = measure.now(device)
            step()
            variant.step_ms.append(1e3 * (measure.now(device) - started))
    except torch.cuda.OutOfMemoryError as error:
        variant.problem = f"out of memory: {str(error).splitlines()[0]}"
    if variant.problem:  # without the exception's frames
        step.step.drop_gradients()
        torch.cuda.empty_cache()


def table(found: list[Variant]) -> str:
    """Memory and speed of each."""
    header = ["variant", "layers", "rehearsed GiB", "measured", "step ms", "tokens/s", "÷ all"]
    body, whole = [], found[0].tokens_per_s
    for one in found:
        sizes = (one.predicted_bytes, one.measured_bytes)
        cells = [number(None if size is None else size / GIB) for size in sizes]
        speed = one.tokens_per_s
        cells += [number(median(one.step_ms) if one.step_ms else None, "{:.1f}"), number(speed, "{:.0f}")]
        body.append([one.name, str(one.layers), *cells, number(whole / speed if whole and speed else None, "{:.3f}")])
    return "\n".join([columns(header, body), *(f"{one.name}: {one.problem}" for one in found if one.problem)])


def main() -> int:
    """Measure, print and write."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite.variants", description=(__doc__ or "").splitlines()[0]
    )
    add_arguments(parser)
    parser.add_argument(
        "--recompute", choices=ALL, action="append", help="only so many layers; all three, if not given"
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="for all of it")
    options = parser.parse_args()
    device = device_of(options.dry)
    quiet_libraries()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["training.micro_batch=1", *options.overrides]
        recipe = recipe_of(options.recipe, Path(folder), overrides, dry=options.dry, shape=options.shape)
        loaded, step = longest_step(recipe, device)
        found: list[Variant] = []
        names = options.recompute or ALL
        write = partial(write_variants, options.out, measure.describe(device) | {"recipe": recipe.name}, found)
        for variant in variants_of(recipe, names, len(loaded.parts.layers), device):
            found.append(variant)
            left_s = options.seconds - (time.monotonic() - started)
            run(step, variant, device, max(1.0, left_s / (len(names) + 1 - len(found)) / 2))
            write()
    print(table(found))
    return 1 if all(variant.problem for variant in found) else 0


def write_variants(path: Path, about: dict[str, object], found: list[Variant]) -> None:
    """What is known so far."""
    write_json(path, about | {"variants": [asdict(one) | {"tokens_per_s": one.tokens_per_s} for one in found]})


if __name__ == "__main__":
    sys.exit(main())
