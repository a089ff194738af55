"""What the gate's looks cost beside a run's steps: ``python -m bench.gate_cost``, a few minutes, no GPU.

The demo's two stages with ``supervision.preset: measured``, as their recipes are and with an evaluation every 50 steps.
The first look finds the massive dimensions; the others that the recipe plans go through the model by themselves; one at
an evaluation takes the curve that is measured there anyway. Share: all looks' time over all steps' time. The gate stays
shut, so the steps are at their shortest and each look chooses a target. What is asked before BASIC goes on (other
samples, and a trial of its pull) stands by itself: it comes when the premise is shown. Time is this process's processor
time on one thread, the median of several runs that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basic_lite.console import quiet_libraries
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.premise import see_patches
from basic_lite.training.assembly import load_for_training, make_step, preflight, supervise
from basic_lite.training.batches import Schedule, step_batches
from basic_lite.training.gate import make_gate
from basic_lite.training.processes import ALONE
from basic_lite.training.refinement_log import curve_batches
from basic_lite.training.step import StepCounts
from bench.evidence.measure import CPU
from bench.evidence.worlds import STAGES, demo_world
from bench.measure import now
from bench.tables import columns

EVERY = 50
FIRST, BY_ITSELF, AT_EVALUATION, STEP = "first look", "look by itself", "look at an evaluation", "step"
GOING_ON = "before it goes on"
SHOWN = FIRST, BY_ITSELF, AT_EVALUATION, GOING_ON
HEADER = ("demo, stage", "step, ms", *(f"{name}, steps" for name in SHOWN), "looks", "share")


@dataclass(frozen=True)
class Cost:
    """Seconds of a step and of each kind of look, and how many there are in a run."""

    seconds: dict[str, float]
    steps: int
    planned: tuple[int, ...]  # steps after which the recipe plans a look

    def share(self, every: int | None) -> tuple[int, float]:
        """How many looks there are with an evaluation every so many steps, and their time over that of the steps."""
        at = set() if every is None else set(range(every, self.steps, every))
        alone = [step for step in self.planned if step not in at]
        counts = {FIRST: 1, BY_ITSELF: len(alone) - 1, AT_EVALUATION: len(at)}  # the first comes before any evaluation
        spent = sum(self.seconds[name] * count for name, count in counts.items())
        return sum(counts.values()), spent / (self.steps * self.seconds[STEP])


def silent(_: str) -> None:
    """Say nothing."""


def cost_of(stage: int, folder: Path, repeats: int, *, tiny: bool) -> Cost:
    """Train a few steps of a stage, with looks in between."""
    measured: dict[str, Any] = {"supervision.preset": "measured", "training.trackers": [], "data.workers": 0}
    recipe = demo_world(tiny=tiny).base(stage, folder, measured)
    frontend, data = preflight(recipe, CPU, silent)
    loaded = load_for_training(recipe, CPU, frontend, silent)  # stage 2's projector is fresh, which takes no longer
    supervision, schedule = supervise(recipe, loaded, silent), Schedule(data.sampler, recipe)
    step = make_step(recipe, loaded, supervision, CPU, steps=schedule.steps)
    gate = make_gate(
        recipe, loaded, supervision, data, schedule, ALONE, silent, step, lambda: recipe.training.micro_batch
    )
    assert gate is not None and supervision is not None
    curve = data.batches_with_images(*curve_batches(recipe))
    source = step_batches(data.train, data.collator, schedule, recipe, CPU, ALONE, 0)
    taken: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = now(CPU)
        yield
        taken[name].append(now(CPU) - started)

    def one_step() -> None:
        batches = next(source).batches
        step(batches, StepCounts.of(batches, loaded.parts.image_token_id), (0.0, 0.0))

    one_step()
    with timed(FIRST):
        gate.look(1)
    for _ in range(repeats):
        gate.state.open = False  # a gate that opened would choose nothing at the next look
        with timed(BY_ITSELF):
            gate.look(1)
        gate.state.open = False
        seen = see_patches(supervision, moved(curve, CPU), loaded.tokenizer, kept=gate.kept)
        with timed(AT_EVALUATION):
            gate.look(1, seen)
        with timed(GOING_ON):
            gate.ask_again()
            gate.pull.tried()
        for _ in range(3):
            with timed(STEP):
                one_step()
    return Cost({name: statistics.median(runs) for name, runs in taken.items()}, schedule.steps, gate.looks.steps)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate_cost", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="one repeat on a small world: does it still run?")
    tiny = parser.parse_args(arguments).tiny
    quiet_libraries()
    torch.set_num_threads(1)
    rows = []
    for stage in STAGES:
        cost = cost_of(stage, Path("runs"), 1 if tiny else 5, tiny=tiny)
        relative = [f"{cost.seconds[name] / cost.seconds[STEP]:.2f}" for name in SHOWN]
        for every, what in ((None, "as it is"), (EVERY, f"evaluated every {EVERY} steps")):
            looks, share = cost.share(every)
            name = f"{stage}, {what}"
            rows.append([name, f"{1e3 * cost.seconds[STEP]:.0f}", *relative, str(looks), f"{share:.2%}"])
    print(columns(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
