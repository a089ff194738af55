"""What a launcher starts in each process: recipes run one after the other, so that a launch is paid for once.

``launch(PLAN)`` starts it; PLAN is a JSON file, a list of runs. Each process leaves ``PLAN.rank<N>``: what Python
opened for writing, made, renamed or removed under the runs' folders.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from basic_lite.cli import main as command_line
from basic_lite.recipe import Recipe, dump_recipe
from basic_lite.run import train
from basic_lite.training.step import TrainStep

TWO = ("--multi_gpu", "--num_processes", "2")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")


def launch_command(*program: str) -> list[str]:
    """README's launch of two processes, on a free port, so that two launches don't meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [sys.executable, "-m", "accelerate.commands.launch", *TWO, "--main_process_port", port, *program]


def launch(plan: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a plan in two processes and wait for its end."""
    command = launch_command(str(Path(__file__)), str(plan))
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


def started(command: list[str], log: Path, lines: int) -> subprocess.Popen[str]:
    """A launch that has written so many lines of its log."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


def planned(
    recipe: Recipe, *, copy_of: Path | None = None, checkpoint: int | None = None, no_memory_at: int | None = None
) -> dict[str, Any]:
    """A run of a plan.

    Args:
        copy_of: the run folder to continue, under the recipe's name; None: a new run.
        checkpoint: with ``copy_of``: the step to continue from; None: the newest checkpoint.
        no_memory_at: number of the second process's micro-batch that finds no memory; None: none.
    """
    return {
        "recipe": recipe.model_dump_json(),
        "copy_of": str(copy_of) if copy_of else None,
        "checkpoint": checkpoint,
        "no_memory_at": no_memory_at,
    }


def watch(folders: list[str]) -> list[str]:
    """Every change under the folders that Python makes from now on, as ``event path``; the list grows."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if (writes or event in CHANGES) and isinstance(arguments[0], str | os.PathLike):
            path = os.path.abspath(arguments[0])
            if path.startswith(tuple(folders)):
                seen.append(f"{event} {path}")

    sys.addaudithook(hook)
    return seen


def run_without_memory(recipe: Recipe, call: int, plan: Path) -> None:
    """The command line on a recipe, where one micro-batch of the second process finds no memory."""
    calls = 0

    loss = TrainStep.loss

    def limited(self: TrainStep, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, *args, **options)

    path = plan.with_name(f"{recipe.name}.rank{os.environ['RANK']}.yaml")
    path.write_text(dump_recipe(recipe))
    with patch.object(TrainStep, "loss", limited):
        command_line(["train", str(path)])


def run_plan(plan: Path) -> None:
    """Each run of the plan, in one of the launched processes."""
    rank = os.environ["RANK"]
    runs = [(run, Recipe.model_validate_json(run["recipe"])) for run in json.loads(plan.read_text())]
    changes = watch(sorted({recipe.output for _, recipe in runs}))
    for run, recipe in runs:
        if run["no_memory_at"] is not None:
            run_without_memory(recipe, run["no_memory_at"], plan)
        if run["copy_of"] is not None and rank == "0":
            # The other process looks into the folder only when this one has told it to.
            shutil.copytree(run["copy_of"], Path(recipe.output) / recipe.name)
        train(recipe, resume=run["copy_of"] is not None, checkpoint=run["checkpoint"])
    plan.with_name(f"{plan.name}.rank{rank}").write_text(json.dumps(changes))


if __name__ == "__main__":
    run_plan(Path(sys.argv[1]))
