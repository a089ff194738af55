"""Kills trainings and exports at random moments and goes on; what is there then is what an unbroken one leaves.

``python -m tests.support.kills FOLDER KILLS SEED``

The processes that are killed are forks, so that a kill costs no import.

A moment that is drawn from a whole run would nearly always be in its loading. So a phase is chosen first, the one that
was hit least, then a moment of it. What was hit is read from the process once it stands still.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import basic_lite.run
from basic_lite.run import train
from basic_lite.tools.export.command import export
from basic_lite.training.loop import Loop
from basic_lite.training.places import best_record, checkpoints_of, is_run
from tests.support.runs import GUARDED, LOUD, log_of, quiet, whole_recipe, write_data

# What is never the same twice.
TIMES = {"tokens_per_s", "step_s", "peak_memory_gib", "look_s"}
CHANGES = {
    **LOUD,
    **GUARDED,
    "lora.dropout": 0.3,
    "training.max_steps": 6,
    "training.save_every": 2,
    "training.keep": 2,
    "training.eval_every": 1,
    "training.metric_for_best_model": "loss",
    "supervision.refinement_batches": 1,
}
# The lines of a model card that have times and memory.
MEASURED = ("| time of the steps |", "| peak memory |")
# A process that takes longer hangs.
MOST_S = 300

PHASES = ("loading", "step", "evaluation", "saving", "final", "export")
# The phase that a forked process is in; its parent reads it.
NOW = multiprocessing.RawValue("i", 0)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Say that the process is in a phase inside this context."""
    before, NOW.value = NOW.value, PHASES.index(name)
    try:
        yield
    finally:
        NOW.value = before


class Phased(Loop):
    """A loop that says in which phase it is."""

    def train(self) -> list[dict[str, Any]]:
        with phase("step"):
            return super().train()

    def _evaluate(self, step: int) -> bool:
        with phase("evaluation"):
            return super()._evaluate(step)

    def _look(self, step: int, *, evaluated: bool) -> None:
        with phase("evaluation"):
            super()._look(step, evaluated=evaluated)

    def _measure_premise(self, *kept: Any) -> None:
        with phase("evaluation"):
            super()._measure_premise(*kept)

    def _save(self) -> None:
        with phase("saving"):
            super()._save()

    def _save_final(self) -> None:
        with phase("final"):
            super()._save_final()


def forked(work: Callable[[], object]) -> int:
    """Do something in a process of its own, and give its number."""
    NOW.value = 0
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def has_ended(child: int, began: float) -> bool:
    """Whether a forked process has come to its end, and a good one."""
    done, status = os.waitpid(child, os.WNOHANG)
    assert not done or status == 0, "it broke by itself"
    if not done and time.monotonic() > began + MOST_S:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"it hung while {PHASES[NOW.value]}")
    return bool(done)


def seconds_in(work: Callable[[], object]) -> Counter[str]:
    """Do something in a process, and give how long it was in each phase."""
    child, spent = forked(work), Counter[str]()
    began = now = time.monotonic()
    while not has_ended(child, began):
        time.sleep(0.001)
        before, now = now, time.monotonic()
        spent[PHASES[NOW.value]] += now - before
    return spent


def killed(work: Callable[[], object], wanted: str, after_s: float) -> str | None:
    """Do something in a process that is killed once it has been in a phase for a while.

    Returns:
        The phase that it was killed in; None: it was done before.
    """
    child, left = forked(work), after_s
    began = now = time.monotonic()
    while left > 0:
        if has_ended(child, began):
            return None
        time.sleep(0.0005)
        before, now = now, time.monotonic()
        left -= now - before if PHASES[NOW.value] == wanted else 0.0
    os.kill(child, signal.SIGSTOP)
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        assert status == 0, "it broke by itself"
        return None
    hit = PHASES[NOW.value]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL
    return hit


def steady_lines(run: Path) -> list[dict[str, Any]]:
    """A log without what is never the same twice."""

    def without(value: Any) -> Any:
        return {k: without(v) for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value

    return [without(line) for line in log_of(run) if "time" not in line]


def digests(folder: Path, *but: str) -> dict[str, str]:
    """The SHA-256 of each file, those below included, but for some of the folder's own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name: digest for name, digest in names.items() if name not in but}


def require_same(one: Path, other: Path) -> None:
    """All files of two runs and of their exports, byte for byte; of logs and model cards all but times and memory."""
    for part, but in (("run", "log.jsonl"), ("export", "README.md")):
        left, right = digests(one / part, but), digests(other / part, but)
        unlike = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        assert not unlike, f"{other.name}/{part}: {unlike}"
    assert best_record(one / "run" / "best") is not None and checkpoints_of(one / "run"), "nothing was compared"
    assert steady_lines(one / "run") == steady_lines(other / "run"), f"{other.name}: the logs differ"
    cards = [(folder / "export" / "README.md").read_text(encoding="utf-8").splitlines() for folder in (one, other)]
    steady = [[line for line in card if not line.startswith(MEASURED)] for card in cards]
    assert steady[0] == steady[1], f"{other.name}: {set(steady[0]) ^ set(steady[1])}"


class Killer:
    """Trains and exports with kills.

    All runs and all exports have the same name and place while they are made, so that no file differs by that. Then
    they move to a folder of their own, ``whole`` or ``part0`` and so on, as ``run`` and ``export``.

    Attributes:
        hits: kills, by phase.
        parts: runs that were killed.
    """

    def __init__(self, folder: Path, seed: int, changes: dict[str, Any]) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.hits, self.parts = Counter(dict.fromkeys(PHASES, 0)), 0
        write_data(folder, 13)
        held_out = write_data(folder / "held_out", 4)
        data = {"path": str(held_out), "image_dir": str(held_out.parent / "images")}
        self.recipe = whole_recipe(folder, {**CHANGES, **changes, "data.eval": data})
        self.run, self.exported = folder / "runs" / self.recipe.name, folder / "export"

    def kill(self, kills: int) -> None:
        """Do what is done without a kill, then with so many."""
        self.usual = seconds_in(self._train) + seconds_in(self._export)
        self._move("whole")
        while self.hits.total() < kills:
            # A kill may come when the export is there already, and it isn't written twice.
            for work, phases in ((self._train, PHASES[:-1]), (self._export, PHASES[-1:])):
                while self.hits.total() < kills and not self.exported.exists() and self._kill(work, phases):
                    pass
                if not self.exported.exists():
                    seconds_in(work)
            self._move(f"part{self.parts}")
            require_same(self.folder / "whole", self.folder / f"part{self.parts}")
            self.parts += 1
        print(f"{self.hits.total()} kills, {self.parts} runs: {dict(self.hits)}", flush=True)

    def _train(self) -> None:
        train(self.recipe, resume=is_run(self.run), console=quiet())

    def _export(self) -> None:
        with phase("export"):
            export(self.run, self.exported, samples=0, console=quiet())

    def _move(self, name: str) -> None:
        (self.folder / name).mkdir()
        self.run.rename(self.folder / name / "run")
        self.exported.rename(self.folder / name / "export")

    def _kill(self, work: Callable[[], object], phases: Sequence[str]) -> bool:
        """Kill it in the phase that was hit least; False: that is none of its own, or it was done before."""
        wanted = min(PHASES, key=lambda one: (self.hits[one], self.draw.random()))
        if wanted not in phases:
            return False
        hit = killed(work, wanted, self.draw.uniform(0, self.usual[wanted]))
        if hit is None:
            return False
        self.hits[hit] += 1
        print(f"kill {self.hits.total()}, of part {self.parts}: in {hit}, wanted {wanted}", flush=True)
        return True


@contextmanager
def ready_to_fork() -> Iterator[None]:
    """Loops say their phase, and no lock is shared with forks, inside this context."""
    loop, lock = basic_lite.run.Loop, tqdm.get_lock()
    # tqdm's own is shared with forks: one that is killed while it writes keeps it, and the next ones would wait for it.
    tqdm.set_lock(threading.RLock())
    basic_lite.run.Loop = Phased  # type: ignore[misc]
    try:
        yield
    finally:
        basic_lite.run.Loop = loop  # type: ignore[misc]
        tqdm.set_lock(lock)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    with ready_to_fork():
        killer = Killer(folder, seed, {})
        killer.kill(kills)
    assert kills < len(PHASES) or all(killer.hits.values()), "a phase was never hit"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
