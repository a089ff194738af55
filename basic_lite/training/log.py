"""What a run writes as it goes: ``log.jsonl``, and the trackers that the recipe names."""

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker

from basic_lite.recipe import Recipe, flat_values
from basic_lite.training.files import saving
from basic_lite.training.log_lines import is_whole, whole_lines
from basic_lite.training.places import TENSORBOARD, json_lines
from basic_lite.training.processes import Processes
from basic_lite.whole_file import whole_file

HELD_OUT_LOSS = "eval_loss"
FIX = "Make room or allow writing there, and continue from the last checkpoint with --resume"


def trackers_of(recipe: Recipe) -> list[Any]:
    """accelerate's trackers: TensorBoard into the run folder, others by name."""
    folder = recipe.run_path
    return [
        TensorBoardTracker(TENSORBOARD, str(folder)) if name == "tensorboard" else name
        for name in recipe.training.trackers
    ]


class RunLog:
    """``log.jsonl``, one JSON object a line, each with its step; numbers also go to the trackers.

    Only the main process writes. What is asked at each evaluation is remembered: a long run's log isn't read again.
    """

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path = path
        self._begins = 0  # bytes of the file that an earlier part of the run has written
        self._newest: tuple[float, set[str]] = (-1, set())  # the last step that has lines, and the names in them
        self._held_out: list[tuple[int, float]] = []  # evaluations' losses
        self._processes = processes
        self._accelerator = processes.accelerator if processes.is_main else None
        self._trackers: list[Any] = []  # those that have started
        self._before = threading.excepthook

    def keep_until(self, step: int) -> None:
        """Drop lines of later steps, so that a resumed run's log reads as an uninterrupted one's.

        A line that isn't whole stays where its step is no later: it may be a person's own.
        """
        if self._processes.is_main and self.path.exists():
            with saving(self.path, FIX), whole_file(self.path) as stream:
                for line in json_lines(self.path):
                    if isinstance(line, dict) and _step(line) <= step:
                        if is_whole(line):
                            self._remember(line)
                        stream.write(json.dumps(line).encode() + b"\n")
            self._begins = self.path.stat().st_size
        elif self._processes.is_main:
            self.path.unlink(missing_ok=True)  # a link to where nothing is: lines would begin a file there

    def has(self, step: int, name: str) -> bool:
        """Whether a step, after which there are no lines yet, has a line with something of that name."""
        newest, names = self._newest
        return step == newest and name in names

    def values(self, name: str) -> list[tuple[int, float]]:
        """The steps that have a number of that name, with it, in order."""
        if name == HELD_OUT_LOSS:
            return list(self._held_out)
        lines = whole_lines(self.path) if self.path.exists() else iter(())
        return [found for line in lines for found in _number(line, name)]

    def history(self) -> list[dict[str, Any]]:
        """The lines of this process's part of the run."""
        if not self._processes.is_main or not self.path.exists():
            return []
        return list(whole_lines(self.path, after=self._begins))

    def start_trackers(self, recipe: Recipe) -> None:
        """Open the trackers that the processes were connected with.

        Raises:
            UserError: one can't be written; so ``write``.
        """
        if self._accelerator is not None:
            threading.excepthook = self._in_thread
            config = {k: v if isinstance(v, int | float) else str(v) for k, v in flat_values(recipe).items()}
            with saving(self.path.with_name(TENSORBOARD), FIX):
                self._accelerator.init_trackers("basic-lite", config, {"wandb": {"name": recipe.name}})
            self._trackers = self._accelerator.trackers

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line."""
        if not self._processes.is_main:
            return
        self._remember({"step": step, **values})
        with saving(self.path, FIX), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers if numbers else ():
            with saving(self.path.with_name(tracker.name), FIX):
                tracker.log(numbers, step=step)

    def _remember(self, line: dict[str, Any]) -> None:
        step, (newest, names) = _step(line), self._newest
        if step >= newest:  # a person may have added others
            self._newest = step, names | line.keys() if step == newest else set(line)
        self._held_out += _number(line, HELD_OUT_LOSS)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        # Not accelerate's end_training: it also closes the connection to the other processes, here in one alone.
        for tracker in self._trackers:
            with suppress(OSError):  # told when it was written; an error of the run isn't told over by it
                tracker.finish()
        threading.excepthook = self._before

    def _in_thread(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, whose error its next call raises anew; so the thread needn't print it."""
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
            self._before(error)


def _number(line: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """A line's step with its number of that name; nothing where it has none."""
    value = line.get(name)
    return [(int(_step(line)), value)] if isinstance(value, int | float) else []


def _step(line: dict[str, Any]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int | float) else 0
