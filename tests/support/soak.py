"""A long tiny run with every part on, and whether anything grows in it.

``python -m tests.support.soak FOLDER STEPS cpu|cuda`` prints the figures, and ends with 1 where something grows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import basic_lite.run
from basic_lite.run import train
from basic_lite.tools.report.page import write_report
from basic_lite.training.loop import Loop
from basic_lite.training.places import LOG
from tests.support.drift import Meter
from tests.support.runs import GUARDED, LOUD, quiet, whole_recipe, write_data

# What the first steps still load and allocate isn't growth.
WARM_UP, EVERY = 100, 25
# Memory may grow by this share. It grew by 1 %, 3,000 bytes a step (95 %: 2,970 to 3,030), while each page, and each
# look for the step of its token maps, read the whole log as a list of dicts. They were freed, but Python's allocator
# gives an arena back only when nothing in it lives, so a process stays as large as its largest page made it. Without
# pages it is 42 (33 to 53). With numbers in columns it is 430 (410 to 450): a page needs 180 bytes for a step and
# 10,000 for an evaluation, which this run has after every 25 steps.
LEVEL = 0.005
CHANGES: dict[str, Any] = {
    **LOUD,
    **GUARDED,
    "lora.dropout": 0.1,
    "data.workers": 1,
    "supervision.preset": "measured",
    "supervision.refinement_batches": 8,
    "training.save_every": 50,
    "training.keep": 2,
    "training.eval_every": 25,
    "training.eval_answers": 1,
    "training.trackers": ["tensorboard"],
}


class Pages:
    """Writes the run's page, and takes down its time for a line of the log: it shows all that the log has."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.seconds = meter, 0.0  # of all pages so far

    def __call__(self, run: Path) -> None:
        began = self.meter.now()
        write_report(run)
        took = self.meter.now() - began
        self.seconds += took
        lines = len((run / LOG).read_text(encoding="utf-8").splitlines())
        if lines > WARM_UP:
            self.meter.took("a page, a line of the log", self.meter.compared(took) / lines)


def measured(meter: Meter, pages: Pages) -> type[Loop]:
    """A loop that is measured."""

    class Measured(Loop):
        _apart = 0.0  # of this turn

        def _turn(self, step: int, *args: Any) -> None:
            began, self._apart = meter.now(), 0.0
            super()._turn(step, *args)
            took = meter.now() - began - self._apart
            if step > WARM_UP:
                meter.took("a step", meter.compared(took))
                if step % EVERY == 0:
                    meter.look()
                    meter.keep(meter.folder / "series.json")

        def _look(self, step: int, *, evaluated: bool) -> None:
            super()._look(step, evaluated=evaluated)
            # Such a model shows no premise. So that steps have both: BASIC is on in three of four.
            assert self.gate is not None
            self.gate.state.open = step // EVERY % 4 != 3

        def _evaluate(self, step: int) -> bool:
            began, before = meter.now(), pages.seconds
            due = super()._evaluate(step)
            took = meter.now() - began
            self._apart += took
            if due and step > WARM_UP:
                meter.took("an evaluation", meter.compared(took - (pages.seconds - before)))
            return due

        def _save(self) -> None:
            began = meter.now()
            super()._save()
            took = meter.now() - began
            self._apart += took
            if self.progress.step > WARM_UP:
                meter.took("a checkpoint", meter.compared(took))

    return Measured


def soak(folder: Path, steps: int, device: str) -> Meter:
    """Train, and give what was measured."""
    scratch = folder / "tmp"
    scratch.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    write_data(folder, 40, text_only=4)
    held_out = write_data(folder / "held_out", 6)
    changes = {
        "data.eval": {"path": str(held_out), "image_dir": str(held_out.parent / "images")},
        "training.max_steps": steps,
        "training.device": device,
    }
    meter = Meter(folder, torch.device(device))
    pages = Pages(meter)
    basic_lite.run.Loop = measured(meter, pages)  # type: ignore[misc]
    train(whole_recipe(folder, CHANGES | changes), console=quiet(), report=pages)
    return meter


def main(folder: Path, steps: int, device: str) -> None:
    torch.set_num_threads(1)
    meter = soak(folder, steps, device)
    print("\n".join(meter.figures()), flush=True)
    if found := meter.findings(level=LEVEL):
        print("\n".join(["it grows:", *found]), flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
