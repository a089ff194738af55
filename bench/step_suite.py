"""A recipe's real training step on a GPU, from random weights: memory beside its prediction, time beside BASIC off.

    python -m bench.step_suite 7b_8gb --limit-gib 8 --out step_7b_8gb.json

The recipe's model is made by ``bench.synthetic`` over ``tests.support.shapes``, so nothing is downloaded; the step is
that of ``basic-lite estimate --measure``, on the longest batch. The process may allocate ``--limit-gib`` of the card
(``torch.cuda.set_per_process_memory_fraction``), and does one recipe, so that limit and peak are its own. The limit
doesn't cover CUDA's context, nor the pages of a paged optimizer, which stay on the card where that has room, so that a
smaller card may be slower than a limited one.

Exit 1 where the step ran out of memory, or where the prediction is more than 10 % off; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from basic_lite.console import quiet_libraries
from basic_lite.intervals import ratio_interval
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Shape, rehearse
from basic_lite.resampling import LEAST_SAMPLES, Interval
from basic_lite.sizes import GIB
from basic_lite.tools.measure import measure_step, predicted_bytes
from basic_lite.training.breakdown import CAPTURE, DAS, MASS, SCALING, SDS, Breakdown, Clock
from basic_lite.training.garbage import set_aside
from bench import measure
from bench.gpu_suite.model import add_arguments, device_of, limit_memory, longest_step, recipe_of
from bench.tables import columns, number, write_json
from bench.timed_step import timed_by

MOST_OFF = 0.10  # of a prediction, relative to what is measured
MOST_STEPS = 20
# The goals: a step with BASIC over one without, and the operations' share of the former.
ON_OVER_OFF_GOAL = 1.03
SHARE_GOALS = {"attention_mass": 0.005, "all": 0.03}
# A share's name → the parts of the breakdown that it sums.
SHARES = {"direction_loss": (CAPTURE, DAS), "row_scaling": (SCALING,), "vocab_kl": (SDS,), "attention_mass": (MASS,)}


@dataclass
class Side:
    """Steps with BASIC, or without.

    ``laps_ms``: of each step, the forwards that ``uniform`` needs first, each micro-batch (at most two of them), and
    the optimizer with clipping.
    """

    predicted_bytes: int
    measured_bytes: int | None = None
    taken_bytes: int | None = None  # from the card: torch's blocks, and what is outside them; None on a CPU
    outside_bytes: int | None = None  # of these CUDA's context and the optimizer's pages
    laps_ms: list[list[float]] = field(default_factory=list)
    operations_ms: list[dict[str, float]] = field(default_factory=list)

    @property
    def steps_ms(self) -> list[float]:
        return [sum(laps) for laps in self.laps_ms]

    def whole_step_ms(self, accumulation: int) -> float | None:
        """A step with all of the recipe's micro-batches, from medians: those after the first are alike."""
        if not self.laps_ms:
            return None
        before, first, *later, optimizer = (median(lap) for lap in zip(*self.laps_ms, strict=True))
        before_each = before / (1 + len(later))
        return accumulation * before_each + first + (accumulation - 1) * (later or [first])[0] + optimizer

    def shares(self) -> dict[str, float]:
        """Shares of a step, by operation and together: medians over the steps."""
        steps = list(zip(self.operations_ms, self.steps_ms, strict=True))
        if not steps:
            return {}
        found = {name: median(operations.get(name, 0.0) / ms for operations, ms in steps) for name in SHARES}
        return found | {"all": median(sum(operations.values()) / ms for operations, ms in steps)}


@dataclass
class StepResult:
    """What is known of a recipe's step; filled as it becomes known, so that a run cut short leaves what it has."""

    recipe: str
    device: str
    limit_gib: float | None
    shape: Shape
    on: Side
    off: Side
    kernels: str = ""
    rehearsing_s: float = 0.0
    building_s: float = 0.0
    micro_batch_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, Side]:
        return {"on": self.on, "off": self.off}

    @property
    def on_over_off(self) -> float | None:
        on, off = (side.whole_step_ms(self.shape.accumulation) for side in (self.on, self.off))
        return on / off if on and off else None

    @property
    def measured_on_over_off(self) -> Interval | None:
        """Of the steps that were timed, which took turns; None where these are too few for an interval."""
        turns = list(zip(self.on.steps_ms, self.off.steps_ms, strict=False))
        return ratio_interval(*np.array(turns).T) if len(turns) >= LEAST_SAMPLES else None

    def times(self, side: Side) -> dict[str, Any]:
        """p20, p50, p80 of the measured step, the whole step, and tokens a second; None where nothing was timed."""
        whole_ms = side.whole_step_ms(self.shape.accumulation)
        tokens = 1e3 * self.micro_batch_tokens * self.shape.accumulation
        return {
            "step_quantiles_ms": measure.quantiles(side.steps_ms) if side.laps_ms else None,
            "whole_step_ms": whole_ms,
            "tokens_per_s": tokens / whole_ms if whole_ms else None,
        }

    def check_prediction(self, name: str) -> None:
        side = self.sides[name]
        if side.measured_bytes is None:
            return
        off = side.predicted_bytes / side.measured_bytes - 1
        if abs(off) > MOST_OFF:
            found = f"{side.predicted_bytes / GIB:.2f} GiB predicted, {side.measured_bytes / GIB:.2f} measured"
            self.problems.append(f"BASIC {name}: {found}, {off:+.1%}; at most {MOST_OFF:.0%} off is asked for")

    def to_dict(self) -> dict[str, Any]:
        sides = {name: asdict(side) | self.times(side) for name, side in self.sides.items()}
        ratios = {"on_over_off": self.on_over_off, "measured_on_over_off": self.measured_on_over_off}
        return {**asdict(self), **sides, **ratios, "shares": self.on.shares()}

    def table(self) -> str:
        """Memory and time of both sides."""
        shape = self.shape
        limit = "" if self.limit_gib is None else f", limited to {self.limit_gib:g} GiB"
        title = f"{self.recipe} on {self.device}{limit}: {shape.accumulation} × {shape.samples} × {shape.tokens} tokens"
        header = [
            "BASIC",
            "predicted GiB",
            "measured",
            "taken",
            "outside",
            "step ms p20",
            "p50",
            "p80",
            "whole ms",
            "tokens/s",
        ]
        body = []
        for name, side in self.sides.items():
            sizes = (side.predicted_bytes, side.measured_bytes, side.taken_bytes, side.outside_bytes)
            quantiles, whole_ms, tokens_per_s = self.times(side).values()
            cells = [number(None if size is None else size / GIB, "{:.2f}") for size in sizes]
            cells += [number(ms, "{:.1f}") for ms in (*(quantiles or [None] * 3), whole_ms)]
            body.append([name, *cells, number(tokens_per_s, "{:.0f}")])
        return f"{title}\n{columns(header, body)}"

    def sentences(self) -> Iterable[str]:
        """Lines for what the table leaves out."""
        steps = len(self.on.laps_ms), len(self.off.laps_ms)
        yield f"kernels: {self.kernels}; steps timed: {steps[0]} with BASIC, {steps[1]} without"
        yield f"rehearsing {self.rehearsing_s:.1f} s, making the model {self.building_s:.1f} s"
        if self.on_over_off is not None:
            yield f"on ÷ off: {self.on_over_off:.4f} (goal ≤ {ON_OVER_OFF_GOAL})"
            if (steps := self.measured_on_over_off) is not None:
                yield f"on ÷ off of the steps that were timed: {steps.value:.3f} [{steps.low:.3f}, {steps.high:.3f}]"
        else:
            yield "on ÷ off: not measured: too little time or memory"
        for name, share in self.on.shares().items():
            goal = f" (goal ≤ {SHARE_GOALS[name]:.1%})" if name in SHARE_GOALS else ""
            yield f"share of a step, {name}: {share:.2%}{goal}"
        yield from self.problems


@contextmanager
def timed(side: Side, breakdown: Breakdown) -> Iterator[Callable[[], None]]:
    """Note the times of the step that is made inside this context, and that calls what it is given at each lap."""
    marks: list[Any] = []
    breakdown.start()
    yield lambda: marks.append(breakdown.clock.mark())
    taken = breakdown.take()
    side.laps_ms.append([breakdown.clock.ms(start, end) for start, end in pairwise(marks)])
    sums = {name: sum(taken.get(part, 0.0) for part in parts) for name, parts in SHARES.items()}
    side.operations_ms.append({name: ms for name, ms in sums.items() if ms})


def run(recipe: Recipe, device: torch.device, result: StepResult, deadline: float) -> None:
    """Fill ``result``: memory of a step with BASIC and without, then times, taking turns until ``deadline``.

    Args:
        deadline: a time of ``time.monotonic``; no step is begun that would probably end later, but each side gets one.
    """
    started = time.monotonic()
    breakdown = Breakdown(Clock(device))
    loaded, step = longest_step(recipe, device, timed_by(breakdown))
    breakdown.clock.wait()
    result.building_s = time.monotonic() - started
    result.micro_batch_tokens = step.micro_batch_tokens
    assert step.supervision is not None, "BASIC is off in this recipe: there is nothing to compare"
    result.kernels = step.supervision.operations.name

    step()  # compiles kernels, makes the optimizer's state
    for name, side in result.sides.items():
        basic = name == "on"
        if device.type == "cuda":
            with timed(side, breakdown) as lap:
                measured = measure_step(step, basic=basic, lap=lap)
            side.measured_bytes = measured.peak_bytes
            side.taken_bytes = measured.reserved_bytes + measured.outside_bytes
            side.outside_bytes = measured.outside_bytes
        else:
            # Recording each allocation takes time, so this step's isn't taken.
            held = measure.held_bytes(loaded.model, step.step.optimizer)
            side.measured_bytes = held + measure.peak_bytes(partial(step, basic=basic), device)
        result.check_prediction(name)

    def time_is_left() -> bool:
        turn_s = 1e-3 * (max(result.on.steps_ms) + max(result.off.steps_ms))
        return time.monotonic() + turn_s < deadline

    with set_aside():  # as in training
        while not result.off.laps_ms or (len(result.off.laps_ms) < MOST_STEPS and time_is_left()):
            for name, side in result.sides.items():
                with timed(side, breakdown) as lap:
                    step(basic=name == "on", lap=lap)


def predicted(recipe: Recipe, device: torch.device, limit_gib: float | None, device_name: str) -> StepResult:
    """What a rehearsal says of the step, before anything is made."""
    started = time.monotonic()
    frontend = load_frontend(recipe.model)
    machine = Machine.here(recipe, device)
    on, off = (Side(predicted_bytes(rehearse(recipe, frontend, machine, basic=basic))) for basic in (True, False))
    result = StepResult(recipe.name, device_name, limit_gib, Shape.of(recipe), on, off)
    result.rehearsing_s = time.monotonic() - started
    return result


def main(arguments: list[str] | None = None) -> int:
    # From the process's start: importing takes seconds, and who started it counts them.
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    parser = argparse.ArgumentParser(prog="python -m bench.step_suite", description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--limit-gib", type=float, required=True, help="of the card's memory")
    parser.add_argument("--seconds", type=float, default=120.0, help="no further step is begun after so long")
    options = parser.parse_args(arguments)
    if not (options.dry or torch.cuda.is_available()):
        print("bench.step_suite needs a GPU, and torch sees none: nothing was run", file=sys.stderr)
        return 2
    device = device_of(options.dry)
    quiet_libraries()
    torch.manual_seed(0)
    limit_gib, about = limit_memory(device, options.limit_gib), measure.describe(device)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(options.recipe, Path(folder), options.overrides, dry=options.dry, shape=options.shape)
        result = predicted(recipe, device, limit_gib, about["device"])
        work = partial(run, recipe, device, result, started + options.seconds)
        return report(result, options.out, about, work)


def report(result: StepResult, path: Path, about: dict[str, Any], work: Callable[[], None]) -> int:
    """Do the work, print and write what came of it even where it was stopped. The exit code."""
    try:
        work()
    except torch.cuda.OutOfMemoryError as error:
        result.problems.append(f"out of memory: {str(error).splitlines()[0]}")
    finally:
        write_json(path, {**about, **result.to_dict()})
        print("\n".join([result.table(), *result.sentences(), f"results  {path}"]), flush=True)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
