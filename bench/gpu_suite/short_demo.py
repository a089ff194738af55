"""The demo's two stages, shortened, on a card: a kill and a resume, an evaluation, and a step that runs out of memory.

1. Stage 1 as its recipe has it (BASIC as measured); stage 2 as published. Both must learn: the loss falls.
2. Stage 2 once more, killed after a checkpoint and resumed: the same steps, losses near to the whole run's.
3. The trained model answers questions.
4. A large micro-batch, then the same under a memory limit that it doesn't fit: the run lowers it and goes on.
"""

from __future__ import annotations

import argparse
import io
import math
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from basic_lite.console import quiet_libraries
from basic_lite.demo import ASSETS
from basic_lite.demo.place import Place, logged
from basic_lite.demo.world import write_world
from basic_lite.recipe import dump_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.training.places import checkpoints_of
from bench import measure
from bench.gpu_suite.model import device_of
from bench.gpu_suite.needs import environment
from bench.tables import write_json

# A small world is written in a second or two.
WORLD = {"train_scenes": 2000, "held_out_scenes": 200, "captions": 1000, "questions": 2000, "eval_questions": 60}
WORLD |= {"eval_captions": 20}
# Losses of the same step may differ by this, relative: a card's sums in bf16 come in any order.
SAME_LOSS = 0.05


def main() -> int:
    """Run all four, print and write what came of them; exit 1 where something went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite.short_demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=60, help="of a stage")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with a tenth of the steps")
    options = parser.parse_args()
    device, steps = device_of(options.dry), max(4, options.steps // 10) if options.dry else options.steps
    quiet_libraries()
    found: dict[str, Any] = measure.describe(device) | {"problems": [], "seconds": {}}
    with tempfile.TemporaryDirectory(prefix="basic-lite-demo-") as folder:
        demo = ShortDemo(Path(folder), device, steps, found)
        for part in (demo.train_both, demo.kill_and_resume, demo.answer, demo.run_out_of_memory):
            started = time.monotonic()
            try:
                part()
            except Exception:  # of any kind: the other parts still have something to say
                found["problems"].append(f"{part.__name__}: {traceback.format_exc()}")
            found["seconds"][part.__name__] = round(time.monotonic() - started, 1)
            write_json(options.out, found)
            print(f"{part.__name__}: {found['seconds'][part.__name__]} s", flush=True)
    print(*(f"{name}: {value}" for name, value in found.items() if name not in ("versions", "seconds")), sep="\n")
    return 1 if found["problems"] else 0


class ShortDemo:
    """The parts, each of which notes in ``found`` what it has seen, and what is wrong in ``found["problems"]``."""

    def __init__(self, folder: Path, device: torch.device, steps: int, found: dict[str, Any]) -> None:
        self.device, self.steps, self.found = device, steps, found
        self.place = Place(folder, ASSETS, write_world(folder / "world", **WORLD), 0)

    def recipe(self, stage: int, name: str, steps: int, **changes: Any) -> Recipe:
        """A stage of the demo on this device."""
        changes = {"training__max_steps": steps, "training__device": self.device.type, "name": name, **changes}
        return self.place.recipe(stage, self.place.out, training__log_every=1, **changes)

    def check(self, right: bool, problem: str) -> None:
        if not right:
            self.found["problems"].append(problem)

    def losses(self, name: str) -> list[float]:
        """The losses of a run's steps, as its log has them."""
        return [float(loss) for loss in logged(self.place.out / name, "loss")]

    def train_both(self) -> None:
        """Stage 1 and stage 2, each must learn."""
        train(self.recipe(1, "stage1", self.steps), console=silent())
        train(self.second("stage2"), console=silent())
        for name in ("stage1", "stage2"):
            losses = self.losses(name)
            self.found[f"losses of {name}"] = [round(loss, 4) for loss in losses]
            self.check(len(losses) == self.steps and all(map(math.isfinite, losses)), f"{name}: losses {losses}")
            self.check(losses[-1] < losses[0], f"{name}: the loss doesn't fall")

    def second(self, name: str) -> Recipe:
        """Stage 2 with BASIC from the start, so that its kernels have work."""
        every = max(1, self.steps // 3)
        return self.recipe(2, name, self.steps, supervision__preset="paper", training__save_every=every)

    def kill_and_resume(self) -> None:
        """A process of its own is killed once it has a checkpoint; this one goes on."""
        recipe, run = self.second("killed"), self.place.out / "killed"
        file = self.place.out / "killed.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        log = self.place.out / "killed.log"
        with log.open("w", encoding="utf-8") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "basic_lite", "train", str(file)], env=environment(), stdout=sink, stderr=sink
            )
            while process.poll() is None and not checkpoints_of(run):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = [path.name for path in checkpoints_of(run)]
        self.found["killed with"] = kept
        if not kept:
            self.check(False, f"the run that was to be killed wrote no checkpoint: {log.read_text(encoding='utf-8')}")
            return
        train(recipe, resume=True, console=silent())
        whole, resumed = self.losses("stage2"), self.losses("killed")
        self.found["bits of the whole run"] = whole == resumed
        same = len(whole) == len(resumed) and all(
            abs(a - b) <= SAME_LOSS * abs(a) for a, b in zip(whole, resumed, strict=True)
        )
        self.check(same, f"resumed, the losses are {resumed[-3:]}, of the whole run {whole[-3:]}")

    def answer(self) -> None:
        """Questions on held-out pictures."""
        result = evaluate_run(
            self.place.out / "stage2",
            self.place.world.eval,
            image_dir=self.place.world.images,
            out=self.place.out / "answers.jsonl",
            controls=0,
            device=self.device.type,
            console=silent(),
        )
        self.found["answered"] = result.counts
        self.check(result.counts["all"] == WORLD["eval_questions"], f"answered {result.counts}")

    def run_out_of_memory(self) -> None:
        """Three steps with a large micro-batch; then with half of the memory that they took."""
        samples = 512 if self.device.type == "cuda" else 8
        large = {"training__micro_batch": samples, "training__global_batch": samples, "supervision__preset": "paper"}
        taken = limited(self.device, None, lambda: train(self.recipe(2, "roomy", 3, **large), console=silent()))
        limit = None if taken is None else taken // 2
        limited(self.device, limit, lambda: train(self.recipe(2, "tight", 3, **large), console=silent()))
        lowered = logged(self.place.out / "tight", "out_of_memory")
        roomy, tight = self.losses("roomy"), self.losses("tight")
        self.found["out of memory"] = {"bytes": taken, "limit": limit, "lowered": lowered, "losses": [roomy, tight]}
        self.check(limit is None or bool(lowered), "memory didn't run out under half of it")
        same = all(abs(a - b) <= SAME_LOSS * abs(a) for a, b in zip(roomy, tight, strict=True))
        self.check(same, f"with smaller micro-batches the losses are {tight}, before {roomy}")


def silent() -> Console:
    """A console that nobody reads."""
    return Console(file=io.StringIO())


def limited(device: torch.device, limit: int | None, work: Callable[[], object]) -> int | None:
    """Do the work; on a card with at most ``limit`` bytes for tensors, if given. The most it took; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    clear_device_cache(garbage_collection=True)
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit / total, device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return torch.cuda.max_memory_reserved(device)


if __name__ == "__main__":
    sys.exit(main())
