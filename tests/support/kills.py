"""Kills trainings and exports at random moments and goes on, in a process of one thread, since it forks.

``python -m tests.support.kills FOLDER KILLS SEED``

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import basic_lite.run
from basic_lite.run import train
from basic_lite.tools.export.command import export
from basic_lite.training.loop import Loop
from basic_lite.training.places import best_record, is_run
from tests.support.runs import GUARDED, LOUD, log_of, quiet, tiny_recipe, weights_of, write_data

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


def seconds_in(work: Callable[[], object]) -> Counter[str]:
    """Do something in a process, and give how long it was in each phase."""
    child, spent = forked(work), Counter[str]()
    now = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "it broke by itself"
            return spent
        time.sleep(0.001)
        before, now = now, time.monotonic()
        spent[PHASES[NOW.value]] += now - before


def killed(work: Callable[[], object], wanted: str, after_s: float) -> str | None:
    """Do something in a process that is killed once it has been in a phase for a while.

    Returns:
        The phase that it was killed in; None: it was done before.
    """
    child, left = forked(work), after_s
    now = time.monotonic()
    while left > 0:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "it broke by itself"
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


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def require_same(one: Path, other: Path) -> None:
    """Weights, log, checkpoints and data of two runs, bit for bit."""
    for bundle in ("final", "best"):
        left, right = weights_of(one / bundle), weights_of(other / bundle)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert best_record(one / "best") == best_record(other / "best") is not None
    assert steady_lines(one) == steady_lines(other)
    for folder in (one, other):
        names = sorted(path.name for path in folder.iterdir() if path.name != "report.html")
        assert not [name for name in names if name.startswith((".", "kept")) or name.endswith((".part", ".lock"))], (
            names
        )
    assert sorted(p.name for p in one.glob("checkpoint-*")) == sorted(p.name for p in other.glob("checkpoint-*"))


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    # tqdm's own is shared with forks: one that is killed while it writes keeps it, and the next ones would wait for it.
    tqdm.set_lock(threading.RLock())
    draw = random.Random(seed)
    write_data(folder, 13)
    data = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    changes = {**CHANGES, "data.eval": data}
    tiny_recipe(folder, changes)  # writes the models
    runs = folder / "runs"

    basic_lite.run.Loop = Phased  # type: ignore[misc]

    def training(name: str) -> Callable[[], object]:
        recipe = tiny_recipe(folder, {**changes, "name": name})
        return lambda: train(recipe, resume=is_run(runs / name), console=quiet())

    def exporting(name: str) -> Callable[[], object]:
        def work() -> None:
            with phase("export"):
                export(runs / name, folder / f"export_{name}", samples=0, console=quiet())

        return work

    usual = seconds_in(training("whole")) + seconds_in(exporting("whole"))
    hits, part = Counter(dict.fromkeys(PHASES, 0)), 0
    while hits.total() < kills:
        name = f"part{part}"
        exported = folder / f"export_{name}"
        for make, phases in ((training, PHASES[:-1]), (exporting, PHASES[-1:])):
            # A kill may come when the export is there already, and it isn't written twice.
            while hits.total() < kills and not exported.exists():
                wanted = min(PHASES, key=lambda one: (hits[one], draw.random()))
                if wanted not in phases:
                    break
                hit = killed(make(name), wanted, draw.uniform(0, usual[wanted]))
                if hit is None:
                    break
                hits[hit] += 1
                print(f"kill {hits.total()} of {name}: in {hit}, wanted {wanted}", flush=True)
            if not exported.exists():
                seconds_in(make(name))
        require_same(runs / "whole", runs / name)
        assert digests(folder / "export_whole").keys() == digests(folder / f"export_{name}").keys()
        part += 1
    print(f"{hits.total()} kills, {part} runs: {dict(hits)}", flush=True)
    assert kills < len(PHASES) or all(hits.values()), "a phase was never hit"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
