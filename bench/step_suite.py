"""A recipe's real training step on a GPU, from random weights: memory beside its prediction, time beside BASIC off.

    python -m bench.step_suite 7b_8gb --limit-gib 8 --out step_7b_8gb.json

The recipe's model is made by ``bench.synthetic`` over ``bench.shapes``, so nothing is downloaded; the step is that of
``basic-lite estimate --measure``, on the longest batch. The process may allocate ``--limit-gib`` of the card
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
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from basic_lite.console import quiet_libraries
from basic_lite.model.audit import audit, check_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Shape, rehearse
from basic_lite.tools.measure import LongestStep, measure_step, predicted_bytes
from basic_lite.units import GIB
from bench import measure
from bench.breakdown import CAPTURE, DAS, MASS, SDS, Breakdown, Clock
from bench.shapes import on_shapes
from bench.synthetic import synthetic_model
from bench.tables import columns, number, write_json

MOST_OFF = 0.10  # of a prediction, relative to what is measured
MOST_STEPS = 20
# The goals: a step with BASIC over one without, and the operations' share of the former.
ON_OVER_OFF_GOAL = 1.03
SHARE_GOALS = {"attention_mass": 0.005, "all": 0.03}
# A share's name → the parts of the breakdown that it sums.
SHARES = {"direction_loss": (CAPTURE, DAS), "vocab_kl": (SDS,), "attention_mass": (MASS,)}


@dataclass
class Side:
    """Steps with BASIC, or without. A measured step has at most two micro-batches; the lists are in its order."""

    predicted_bytes: int
    measured_bytes: int | None = None
    taken_bytes: int | None = None  # from the card, with CUDA's context; None on a CPU
    before_ms: list[float] = field(default_factory=list)  # of each step: the forwards that `uniform` needs first
    micro_batches_ms: list[list[float]] = field(default_factory=list)
    optimizer_ms: list[float] = field(default_factory=list)  # clipping included
    operations_ms: list[dict[str, float]] = field(default_factory=list)

    def add(self, laps_ms: list[float], operations_ms: dict[str, float]) -> None:
        before, *micro_batches, optimizer = laps_ms
        self.before_ms.append(before)
        self.micro_batches_ms.append(micro_batches)
        self.optimizer_ms.append(optimizer)
        self.operations_ms.append(operations_ms)

    @property
    def steps_ms(self) -> list[float]:
        laps = zip(self.before_ms, self.micro_batches_ms, self.optimizer_ms, strict=True)
        return [before + sum(micro_batches) + optimizer for before, micro_batches, optimizer in laps]

    def quantiles_ms(self) -> list[float] | None:
        """p20, p50, p80 of the measured step."""
        if not self.steps_ms:
            return None
        return list(measure.quantiles(self.steps_ms))

    def whole_step_ms(self, accumulation: int) -> float | None:
        """A step with all of the recipe's micro-batches, from medians: those after the first are alike."""
        if not self.optimizer_ms:
            return None
        first = median(m[0] for m in self.micro_batches_ms)
        later = [ms for m in self.micro_batches_ms for ms in m[1:]]
        micro_batches = first + (accumulation - 1) * (median(later) if later else first)
        before = median(self.before_ms) * accumulation / len(self.micro_batches_ms[0])
        return before + micro_batches + median(self.optimizer_ms)

    def shares(self) -> dict[str, float]:
        """Shares of a step, by operation and together: medians over the steps."""
        found: dict[str, list[float]] = defaultdict(list)
        for operations, step in zip(self.operations_ms, self.steps_ms, strict=True):
            for name in SHARES:
                found[name].append(operations.get(name, 0.0) / step)
            found["all"].append(sum(operations.values()) / step)
        return {name: median(values) for name, values in found.items()}


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
    def on_over_off(self) -> float | None:
        on, off = (side.whole_step_ms(self.shape.accumulation) for side in (self.on, self.off))
        return on / off if on and off else None

    def tokens_per_s(self, side: Side) -> float | None:
        step_ms = side.whole_step_ms(self.shape.accumulation)
        return 1e3 * self.micro_batch_tokens * self.shape.accumulation / step_ms if step_ms else None

    def check_prediction(self, name: str, side: Side) -> None:
        if side.measured_bytes is None:
            return
        off = side.predicted_bytes / side.measured_bytes - 1
        if abs(off) > MOST_OFF:
            found = f"{side.predicted_bytes / GIB:.2f} GiB predicted, {side.measured_bytes / GIB:.2f} measured"
            self.problems.append(f"BASIC {name}: {found}, {off:+.1%}; at most {MOST_OFF:.0%} off is asked for")

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for name, side in (("on", self.on), ("off", self.off)):
            found[name] |= {
                "step_quantiles_ms": side.quantiles_ms(),
                "whole_step_ms": side.whole_step_ms(self.shape.accumulation),
                "tokens_per_s": self.tokens_per_s(side),
            }
        found |= {"on_over_off": self.on_over_off, "on_over_off_goal": ON_OVER_OFF_GOAL}
        return found | {"shares": self.on.shares(), "share_goals": SHARE_GOALS}

    def table(self) -> str:
        """Memory and time of both sides."""
        shape = self.shape
        limit = "" if self.limit_gib is None else f", limited to {self.limit_gib:g} GiB"
        title = f"{self.recipe} on {self.device}{limit}: {shape.accumulation} × {shape.samples} × {shape.tokens} tokens"
        header = ["BASIC", "predicted GiB", "measured", "taken", "step ms p20", "p50", "p80", "whole ms", "tokens/s"]
        body = []
        for name, side in (("on", self.on), ("off", self.off)):
            sizes = (side.predicted_bytes, side.measured_bytes, side.taken_bytes)
            times = side.quantiles_ms() or (None, None, None)
            cells = [number(None if size is None else size / GIB, "{:.2f}") for size in sizes]
            cells += [number(value, "{:.1f}") for value in (*times, side.whole_step_ms(shape.accumulation))]
            body.append([name, *cells, number(self.tokens_per_s(side), "{:.0f}")])
        return f"{title}\n{columns(header, body)}"

    def sentences(self) -> Iterable[str]:
        """Lines for what the table leaves out."""
        steps = len(self.on.steps_ms), len(self.off.steps_ms)
        yield f"kernels: {self.kernels}; steps timed: {steps[0]} with BASIC, {steps[1]} without"
        yield f"rehearsing {self.rehearsing_s:.1f} s, making the model {self.building_s:.1f} s"
        if self.on_over_off is not None:
            yield f"on ÷ off: {self.on_over_off:.4f} (goal ≤ {ON_OVER_OFF_GOAL})"
        else:
            yield "on ÷ off: not measured: too little time or memory"
        for name, share in self.on.shares().items():
            goal = f" (goal ≤ {SHARE_GOALS[name]:.1%})" if name in SHARE_GOALS else ""
            yield f"share of a step, {name}: {share:.2%}{goal}"
        yield from self.problems


def held_bytes(step: LongestStep) -> int:
    """What there is between two steps: weights with their statistics, buffers, the optimizer's state."""
    model = step.loaded.model
    state = [value for values in step.step.optimizer.state.values() for value in values.values()]
    statistics = sum(part.bytes for part in audit(step.loaded.parts)) - tensor_bytes(model.parameters())
    return tensor_bytes([*model.parameters(), *model.buffers(), *state]) + max(statistics, 0)


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of distinct storages."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(seen.values())


def run(recipe: Recipe, device: torch.device, result: StepResult, deadline: float) -> None:
    """Fill ``result``: memory of a step with BASIC and without, then times, taking turns until ``deadline``.

    Args:
        deadline: a time of ``time.monotonic``; no step is begun that would probably end later, but each side gets one.
    """
    started = time.monotonic()
    frontend = load_frontend(recipe.model)
    loaded = synthetic_model(recipe, frontend, device)
    check_parts(audit(loaded.parts), recipe, pick_dtype(recipe.model.dtype, device))
    clock = Clock(device)
    breakdown = Breakdown(clock)
    step = LongestStep(recipe, loaded, result.shape, device, lambda text: None, breakdown.make_step)
    clock.wait()
    result.building_s = time.monotonic() - started
    result.micro_batch_tokens = step.micro_batch_tokens
    assert step.supervision is not None, "BASIC is off in this recipe: there is nothing to compare"
    result.kernels = step.supervision.operations.name

    step()  # compiles kernels, makes the optimizer's state
    sides = (("on", result.on, True), ("off", result.off, False))
    for name, side, basic in sides:
        breakdown.take()
        if device.type == "cuda":
            marks: list[Any] = []
            measured = measure_step(step, basic=basic, lap=lambda marks=marks: marks.append(clock.mark()))
            side.measured_bytes = measured.peak_bytes
            side.taken_bytes = measured.reserved_bytes + measured.outside_bytes
            side.add(_laps(clock, marks), _operations_ms(breakdown))
        else:
            # Recording each allocation takes time, so this step's isn't taken.
            side.measured_bytes = held_bytes(step) + measure.peak_bytes(lambda basic=basic: step(basic=basic), device)
        result.check_prediction(name, side)

    def time_is_left() -> bool:
        turn_s = 1e-3 * (max(result.on.steps_ms) + max(result.off.steps_ms))
        return time.monotonic() + turn_s < deadline

    breakdown.take()
    while not result.off.steps_ms or (len(result.off.steps_ms) < MOST_STEPS and time_is_left()):
        for _, side, basic in sides:
            marks = []
            step(basic=basic, lap=lambda marks=marks: marks.append(clock.mark()))
            clock.wait()
            side.add(_laps(clock, marks), _operations_ms(breakdown))


def _operations_ms(breakdown: Breakdown) -> dict[str, float]:
    """Milliseconds of a step, by operation."""
    taken = breakdown.take()
    sums = {name: sum(taken.get(part, 0.0) for part in parts) for name, parts in SHARES.items()}
    return {name: ms for name, ms in sums.items() if ms}


def _laps(clock: Clock, marks: list[Any]) -> list[float]:
    return [clock.ms(start, end) for start, end in pairwise(marks)]


def predicted(recipe: Recipe, device: torch.device, limit_gib: float | None, device_name: str) -> StepResult:
    """What a rehearsal says of the step, before anything is made."""
    started = time.monotonic()
    frontend = load_frontend(recipe.model)
    machine = Machine.card(recipe) if device.type == "cuda" else Machine.this_cpu(recipe)
    on, off = (Side(predicted_bytes(rehearse(recipe, frontend, machine, basic=basic))) for basic in (True, False))
    result = StepResult(recipe.name, device_name, limit_gib, Shape.of(recipe), on, off)
    result.rehearsing_s = time.monotonic() - started
    return result


def limit_memory(device: torch.device, limit_gib: float) -> float:
    """Let this process allocate so much of a card; all of one that has less. The limit in GiB."""
    total_gib = torch.cuda.get_device_properties(device).total_memory / GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib / total_gib), device)
    return min(limit_gib, total_gib)


def main(arguments: list[str] | None = None) -> int:
    # From the process's start: importing takes seconds, and who started it counts them.
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    parser = argparse.ArgumentParser(prog="python -m bench.step_suite", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a shipped recipe's name, or a file")
    parser.add_argument("overrides", nargs="*", help="key.path=value, as for basic-lite train")
    parser.add_argument("--limit-gib", type=float, required=True, help="of the card's memory")
    parser.add_argument("--seconds", type=float, default=120.0, help="no further step is begun after so long")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.step_suite needs a GPU, and torch sees none: nothing was run", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    quiet_libraries()
    torch.manual_seed(0)
    limit_gib = limit_memory(device, options.limit_gib)
    with tempfile.TemporaryDirectory() as folder:
        recipe = on_shapes(options.recipe, Path(folder), options.overrides)
        result = predicted(recipe, device, limit_gib, torch.cuda.get_device_name(device))
        work = partial(run, recipe, device, result, started + options.seconds)
        return report(result, options.out, measure.describe(device), work)


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
