"""Kills trainings and exports at random moments and goes on, in a process of one thread, since it forks.

``python -m tests.support.kills FOLDER KILLS SEED``
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from basic_lite.run import train
from basic_lite.tools.export.command import export
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


def killed(work: Callable[[], object], after_s: float | None) -> bool:
    """Do something in a process that is killed after a while, if it isn't done by then. Whether it was killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = None if after_s is None else time.monotonic() + after_s
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            assert status == 0, "it broke by itself"
            return False
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert status in (0, signal.SIGKILL), "it broke by itself"
            return status == signal.SIGKILL
        time.sleep(0.001)


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    assert not killed(work, None)
    return time.monotonic() - began


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

    def training(name: str) -> Callable[[], object]:
        recipe = tiny_recipe(folder, {**changes, "name": name})
        return lambda: train(recipe, resume=is_run(runs / name), console=quiet())

    def exporting(name: str) -> Callable[[], object]:
        return lambda: export(runs / name, folder / f"export_{name}", samples=0, console=quiet())

    usual = {training: took(training("whole")), exporting: took(exporting("whole"))}
    count = part = 0
    while count < kills:
        name = f"part{part}"
        exported = folder / f"export_{name}"
        for make, seconds in usual.items():
            # A kill may come when the export is there already, and it isn't written twice.
            while count < kills and not exported.exists() and killed(make(name), draw.uniform(0, seconds)):
                count += 1
                print(f"kill {count} of {make.__name__} {name}", flush=True)
            if not exported.exists():
                assert not killed(make(name), None)
        require_same(runs / "whole", runs / name)
        assert digests(folder / "export_whole").keys() == digests(folder / f"export_{name}").keys()
        part += 1
    print(f"{count} kills, {part} runs", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
