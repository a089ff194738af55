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

from tests.support.drift import Meter, growth, medians

ROOT = Path(__file__).resolve().parents[2]
TURNS = 24


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
