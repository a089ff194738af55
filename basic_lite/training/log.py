"""What a run writes as it goes: ``log.jsonl``, and the trackers that the recipe names."""

import json
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker

from basic_lite.recipe import Recipe, flat_values
from basic_lite.training.files import saving
from basic_lite.training.places import PART, TENSORBOARD, log_lines
from basic_lite.training.processes import Processes

FIX = "Make room, and continue from the last checkpoint with --resume"


def trackers_of(recipe: Recipe) -> list[Any]:
    """accelerate's trackers: TensorBoard into the run folder, others by name."""
    folder = Path(recipe.output) / recipe.name
    return [
        TensorBoardTracker(TENSORBOARD, str(folder)) if name == "tensorboard" else name
        for name in recipe.training.trackers
    ]


class RunLog:
    """``log.jsonl``, one JSON object a line, each with its step; numbers also go to the trackers.

    Only the main process writes. ``history`` holds the lines of this process's part of the run.
    """

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self._processes = processes
        self._accelerator = processes.accelerator if processes.is_main else None

    def keep_until(self, step: int) -> None:
        """Drop lines of later steps, so that a resumed run's log reads as an uninterrupted one's."""
        if self._processes.is_main and self.path.exists():
            kept = [json.dumps(line) for line in log_lines(self.path) if _step(line) <= step]
            scratch = self.path.with_name(self.path.name + PART)
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(scratch, self.path)

    def has(self, step: int, name: str) -> bool:
        """Whether there is a line of a step with something of that name."""
        return self.path.exists() and any(_step(line) == step and name in line for line in log_lines(self.path))

    def values(self, name: str) -> list[tuple[int, float]]:
        """The steps that have a number of that name, with it, in order."""
        lines = log_lines(self.path) if self.path.exists() else iter(())
        found = ((int(_step(line)), line.get(name)) for line in lines)
        return [(step, value) for step, value in found if isinstance(value, int | float)]

    def start_trackers(self, recipe: Recipe) -> None:
        """Open the trackers that the processes were connected with."""
        if self._accelerator is not None:
            config = {k: v if isinstance(v, int | float) else str(v) for k, v in flat_values(recipe).items()}
            self._accelerator.init_trackers("basic-lite", config, {"wandb": {"name": recipe.name}})

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line."""
        if not self._processes.is_main:
            return
        self.history.append({"step": step, **values})
        with saving(self.path, FIX), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._accelerator is not None and numbers:
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        if self._accelerator is not None:
            # Not accelerate's end_training: it also closes the connection to the other processes, here in one alone.
            for tracker in self._accelerator.trackers:
                tracker.finish()


def _step(line: dict[str, Any]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int | float) else 0
