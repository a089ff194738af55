"""Nothing grows in a long run: the rule that says so, planted leaks that it finds, and the run itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.drift import Meter, between_ends, growth, medians

ROOT = Path(__file__).resolve().parents[2]
TURNS = 24
# Of a made run: looks, and steps; about what 2,000 steps give.
LOOKS, STEPS = 76, 1900


def test_noise_is_no_growth_and_a_tenth_is_seen_through_it() -> None:
    """Times with a tenth of noise, heavy tails, and one in twenty that another program made three times as long."""
    draw = np.random.default_rng(0)
    noise = 1 + 0.1 * draw.standard_t(3, size=(200, 1900)).clip(-5, 20)
    noise *= np.where(draw.random(noise.shape) < 0.05, 3.0, 1.0)
    flat = [growth(medians(row)) for row in noise]
    assert not any(one.low > 0.05 for one in flat)
    assert sum(one.low <= 0 <= one.high for one in flat) >= 180, "95 % intervals"
    rising = noise * np.linspace(1, 1.1, 1900)
    assert sum(growth(medians(row)).low > 0.05 for row in rising) >= 180


def test_growth_by_hand() -> None:
    found = growth([10.0, 11.0, 12.0, 13.0, 40.0])
    assert found.share == pytest.approx(4 * 1.0 / 12), "the median of the slopes is 1, whatever the last value is"
    assert found.low <= found.share <= found.high and growth([5.0] * 9).high == 0


def test_ends_by_hand() -> None:
    found = between_ends([10.0, 10.0, 10.0, 10.0, 40.0, 7.0, 20.0, 20.0, 20.0, 20.0, 30.0])
    assert (found.share, found.low, found.high) == (1.0, -0.5, 2.0)
    assert between_ends([5.0] * 9) == between_ends([5.0] * 900), "nothing grows"


def made(seed: int) -> tuple[Meter, np.random.Generator]:
    """What a run has in which nothing grows, with the noise that such runs have."""
    draw, meter = np.random.default_rng(seed), Meter(Path())
    meter.levels["RSS"] = list(6e8 * (1 + 1e-3 * draw.standard_normal(LOOKS)))
    meter.counts["handles"] = [int(count) for count in draw.choice([21, 23], LOOKS, p=[0.2, 0.8])]
    for name, times in (("a step", STEPS), ("an evaluation", LOOKS), ("a checkpoint", LOOKS // 2)):
        meter.seconds[name] = list(1 + 0.1 * draw.standard_t(3, times).clip(-5, 20))
    return meter, draw


def rises(values: list[Any], start: float, factor: float) -> None:
    """From this share of the series on, all is so many times as much."""
    begin = round(start * len(values))
    values[begin:] = [type(value)(value * factor) for value in values[begin:]]


def memory_that_doubles(meter: Meter) -> None:
    rises(meter.levels["RSS"], 0.6, 2)


def memory_late(meter: Meter) -> None:
    rises(meter.levels["RSS"], 0.75, 4.8)


def memory_bit_by_bit(meter: Meter) -> None:
    level = meter.levels["RSS"]
    begin = round(0.72 * LOOKS)
    level[begin:] = [value * 1.01 ** (1 + turn) for turn, value in enumerate(level[begin:])]


def steps_late(meter: Meter) -> None:
    rises(meter.seconds["a step"], 0.75, 3)


def steps_that_double(meter: Meter) -> None:
    rises(meter.seconds["a step"], 0.6, 2)


def checkpoints_late(meter: Meter) -> None:
    rises(meter.seconds["a checkpoint"], 0.75, 3)


def handles_that_fall_last(meter: Meter) -> None:
    meter.counts["handles"] = [*np.linspace(10, 65, LOOKS - 1).astype(int).tolist(), 10]


def handles_after_a_peak(meter: Meter) -> None:
    meter.counts["handles"] = [10, 70, *np.linspace(10, 65, LOOKS - 2).astype(int).tolist()]


def handles_after_a_broad_peak(meter: Meter) -> None:
    meter.counts["handles"] = [70, 70, 70, *np.linspace(10, 65, LOOKS - 3).astype(int).tolist()]


def handles_late(meter: Meter) -> None:
    meter.counts["handles"][-8:] = [24] * 8


@pytest.mark.parametrize(
    ("grow", "seen"),
    [
        (memory_that_doubles, "RSS: "),
        (memory_late, "RSS: "),
        (memory_bit_by_bit, "RSS: "),
        (steps_late, "time of a step: "),
        (steps_that_double, "time of a step: "),
        (checkpoints_late, "time of a checkpoint: "),
        (handles_that_fall_last, "handles: "),
        (handles_after_a_peak, "handles: "),
        (handles_after_a_broad_peak, "handles: "),
        (handles_late, "handles: "),
    ],
)
def test_growth_that_begins_late_or_hides_is_found(grow: Callable[[Meter], None], seen: str) -> None:
    for seed in range(3):
        meter, _ = made(seed)
        grow(meter)
        found = meter.findings()
        assert found and all(one.startswith(seen) for one in found), (seed, found)


def test_noise_and_a_spike_are_not_found() -> None:
    """A spike of each series, wherever it is: in the first tenth, the last, or between."""
    for seed in range(20):
        meter, draw = made(seed)
        if seed % 2:
            for one in (*meter.levels.values(), *meter.counts.values(), *meter.seconds.values()):
                one[draw.integers(len(one))] *= 10
        assert meter.findings() == [], seed


class Leaking:
    """A program of some turns, of which each may leave something behind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept, self.done = folder, list[Any](), threading.Event()

    def nothing(self) -> None:
        torch.randn(1000).sum()

    def a_list(self) -> None:
        self.kept.append([str(number) for number in range(8000)])

    def memory_that_python_does_not_know(self) -> None:
        self.kept.append(torch.ones(300_000))

    def a_handle(self) -> None:
        self.kept.append(open(os.devnull))  # noqa: SIM115

    def a_thread(self) -> None:
        self.kept.append(threading.Thread(target=self.done.wait))
        self.kept[-1].start()

    def a_file(self) -> None:
        (self.folder / str(len(list(self.folder.iterdir())))).touch()

    def longer_steps(self) -> None:
        self.kept.append(0)

    def end(self) -> None:
        self.done.set()
        for one in self.kept:
            if isinstance(one, threading.Thread):
                one.join()
            elif hasattr(one, "close"):
                one.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("leak", "seen"),
    [
        (Leaking.nothing, None),
        (Leaking.a_list, "Python's blocks: "),
        (Leaking.memory_that_python_does_not_know, "RSS: "),
        (Leaking.a_handle, "handles: "),
        (Leaking.a_thread, "threads: "),
        (Leaking.a_file, "files: "),
        (Leaking.longer_steps, "time of a step: "),
    ],
)
def test_a_planted_leak_is_found(tmp_path: Path, leak: Callable[[Leaking], None], seen: str | None) -> None:
    program, meter = Leaking(tmp_path), Meter(tmp_path)
    try:
        for turn in range(TURNS):
            leak(program)
            # The work of a step, by counting: what is planted is known, and no clock is asked.
            meter.took("a step", 100 + (turn if leak is Leaking.longer_steps else turn % 3))
            meter.look()
    finally:
        program.end()
    found = meter.findings()
    assert bool(found) == bool(seen) and (seen is None or any(one.startswith(seen) for one in found)), found


@pytest.mark.soak
def test_nothing_grows_in_a_long_run(tmp_path: Path) -> None:
    """2,000 steps on the CPU; on a card, where there is one, 500."""
    on_card = torch.cuda.is_available()
    place = ["500", "cuda"] if on_card else ["2000", "cpu"]
    command = [sys.executable, "-m", "tests.support.soak", str(tmp_path), *place]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=7200)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
