"""One training step of LLaVA by basic-lite and by TRL's SFTTrainer: the same model, data, LoRA and batch, LM loss only.

    python -m bench.beside_trl [--tiny] [--out DIR]

Both sides train the model and data of ``trl_task``, each in processes of its own, in turn: on a CPU a model that it can
train, on a GPU one of the size of SmolLM2-360M. basic-lite runs its own loop with ``supervision.enabled: false``. TRL
is ``SFTTrainer`` as its documentation has it: the processor, an ``images`` column, TRL's collator, a PEFT configuration
with the projector in ``modules_to_save``. Two things are done to it so that both do the same, see ``train_with_trl``.

That it is the same task is checked, not assumed: tokens and labels of the first step bit for bit, the number of trained
weights, and the losses of all steps, for which both start from the same adapters. Exit 1 where that fails. Time and
memory are reported and never gated. TRL is not a dependency of this project: exit 2 where it isn't installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from basic_lite.console import quiet_libraries
from basic_lite.model.audit import audit
from basic_lite.model.load import pick_device, pick_dtype, quantization_config
from basic_lite.training.assembly import load_for_training, preflight, software_of, uses_autocast
from basic_lite.training.breakdown import Breakdown, Clock
from basic_lite.training.loop import Loop
from basic_lite.training.made import Run
from basic_lite.training.processes import connect
from basic_lite.training.run_folder import RunFolder
from basic_lite.training.trained_on import TrainedOn
from bench import measure
from bench.tables import columns, mib, write_json
from bench.trl_task import GLOBAL_BATCH, MICRO_BATCH, Task, write_task

WHO = ("basic-lite", "TRL")
# Steps of a process: left out of the times, timed, and one more whose memory is recorded. Processes of each side.
WARM_UP, TIMED, ROUNDS = 2, 5, 3
# Losses of the same step may differ by this, relative: float32 sums in another order; with bf16 autocast, its rounding.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
NEEDS_TRL = "bench.beside_trl compares with TRL, which isn't installed (no dependency of basic-lite): pip install trl"
# One thread, and nothing from the network.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass
class Measured:
    """What one process measured. Times are of whole steps, data loading and logging included, warm-up left out.

    ``step_ms``: processor time; on a GPU the wall clock. ``tensor_bytes``: the most that tensors took in
    one step on top of ``held_bytes``, those alive between steps. ``resident_bytes``: the process's peak, its libraries
    and the loading of the model included; 0 where the system doesn't say.
    """

    who: str
    step_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    held_bytes: int = 0
    tensor_bytes: int = 0
    resident_bytes: int = 0
    labelled: int = 0
    tokens: int = 0
    digest: str = ""
    trained: int = 0


# --- one process of one side ------------------------------------------------------------------------------------------


class FirstStep:
    """Wraps a collator and notes what the first step's samples are: tokens, labels, a digest of both."""

    def __init__(self, collator: Callable[..., Any], found: Measured) -> None:
        self.collator, self.found = collator, found
        self.left = GLOBAL_BATCH // MICRO_BATCH

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collator(samples)
        if self.left:
            self.left -= 1
            kept = batch["attention_mask"].bool()
            ids, labels = batch["input_ids"][kept], batch["labels"][kept]
            self.found.tokens += len(ids)
            self.found.labelled += int((labels != -100).sum())
            content = self.found.digest.encode() + ids.numpy().tobytes() + labels.numpy().tobytes()
            self.found.digest = hashlib.sha256(content).hexdigest()
        return batch


class Stopwatch:
    """Measures a run from one update of the optimizer to the next. The last step is recorded, not timed."""

    def __init__(self, found: Measured, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.found, self.steps, self.model, self.optimizer = found, steps, model, optimizer
        self.step, self.device = 0, pick_device("auto")
        draw_adapters(model)
        found.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        optimizer.register_step_post_hook(self._stepped)
        self.began = measure.now(self.device)

    def _stepped(self, *_: Any) -> None:
        taken_s = measure.now(self.device) - self.began
        self.step += 1
        if WARM_UP < self.step < self.steps:
            self.found.step_ms.append(1e3 * taken_s)
        if self.step == self.steps - 1:
            self.found.resident_bytes = resident_peak_bytes()
            for parameter in self.model.parameters():
                parameter.grad = None  # as either side does next: the record begins without them
            self.found.held_bytes = measure.held_bytes(self.model, self.optimizer)
            self.record = measure.PeakRecord(self.device)
        elif self.step == self.steps:
            self.found.tensor_bytes = self.record.stop()
        self.began = measure.now(self.device)


def draw_adapters(model: nn.Module) -> None:
    """Give LoRA's A the same values on both sides (B is zero), so that losses agree beyond the first step."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            place = name[name.index("layers.") :]
            seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "little")
            values = measure.draw(*parameter.shape, device=torch.device("cpu"), seed=seed) / parameter.shape[1] ** 0.5
            with torch.no_grad():
                parameter.copy_(values)


def resident_peak_bytes() -> int:
    """The most that this process has had resident so far; 0 where Linux isn't there to say it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def train_with_basic_lite(task: Task, found: Measured, output: Path) -> None:
    """basic-lite's own loop, as ``basic_lite.run.train`` makes it, with a stopwatch on its optimizer."""
    recipe, device = task.recipe(output), pick_device("auto")
    set_seed(recipe.seed)
    processes = connect(recipe, device, bf16=uses_autocast(recipe, device), trackers=[])
    frontend, data = preflight(recipe, device, lambda text: None)
    loaded = load_for_training(recipe, device, frontend, lambda text: None)
    watched = replace(data, collator=FirstStep(data.collator, found))
    folder = RunFolder(output)
    output.mkdir(parents=True)
    folder.begin(recipe, audit(loaded.parts), data.summary(), TrainedOn(), software_of(device))
    silent = Console(file=io.StringIO())
    breakdown = Breakdown(Clock(device))
    loop = Loop(Run(recipe, loaded, watched, None, breakdown, folder, None, processes, device, silent))
    assert loop.train_step.optimizer is not None
    Stopwatch(found, task.steps, loaded.model, loop.train_step.optimizer)
    found.losses = [line["loss"] for line in loop.train() if "loss" in line]


def train_with_trl(task: Task, found: Measured, output: Path) -> None:
    """``SFTTrainer`` over the same checkpoint and rows.

    Two things are not its default. Its rows come in the order of basic-lite's (``train_sampling_strategy``). And
    trained weights are float32: TRL makes those of a quantised model bf16, which basic-lite doesn't, and which without
    autocast could not be multiplied with the float32 features that reach the projector.
    """
    from datasets import Dataset, Image, List
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    recipe = task.recipe(output)
    settings, device = recipe.training, pick_device("auto")
    dtype = pick_dtype(recipe.model.dtype, device)
    rows = json.loads(task.rows.read_text(encoding="utf-8"))
    kept_whole = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    trainer = SFTTrainer(
        model=str(task.llava),
        args=SFTConfig(
            output_dir=str(output),
            model_init_kwargs={"dtype": dtype},
            max_length=recipe.data.max_length,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.global_batch // settings.micro_batch,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=math.ceil(task.steps * settings.warmup_ratio),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            optim="adamw_torch_fused" if device.type == "cuda" else "adamw_torch",
            gradient_checkpointing=bool(settings.gradient_checkpointing),
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=uses_autocast(recipe, device),
            use_cpu=device.type == "cpu",
            seed=recipe.seed,
            train_sampling_strategy="sequential",
            dataloader_num_workers=recipe.data.workers,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
        quantization_config=quantization_config(recipe.quantization, dtype, device, kept_whole),
        peft_config=LoraConfig(
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            target_modules=r".*language_model\.layers\..*_proj",
            modules_to_save=["multi_modal_projector"],
        ),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.data_collator = FirstStep(trainer.data_collator, found)
    Stopwatch(found, task.steps, trainer.model, trainer.create_optimizer())
    trainer.train()
    found.losses = [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]


SIDES = {"basic-lite": train_with_basic_lite, "TRL": train_with_trl}


def train(who: str, task: Task, output: Path) -> Measured:
    """One run of one side, in this process."""
    torch.set_num_threads(1)
    quiet_libraries()
    found = Measured(who)
    with redirect_stdout(io.StringIO()):
        SIDES[who](task, found, output)
    return found


# --- both sides -------------------------------------------------------------------------------------------------------


def train_apart(who: str, task: Task, output: Path) -> Measured:
    """One run of one side, in a process of its own."""
    os.environ.update(ENVIRONMENT)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, who, task, output).result()


def differences(runs: Sequence[Measured], device: str) -> list[str]:
    """Why these runs are not of the same task; empty where they are."""
    first, found = runs[0], []
    for run in runs[1:]:
        for what in ("trained", "tokens", "labelled", "digest"):
            ours, theirs = getattr(first, what), getattr(run, what)
            if ours != theirs:
                found.append(f"{what}: {ours} ({first.who}) and {theirs} ({run.who})")
        losses = zip_longest(first.losses, run.losses, fillvalue=math.nan)  # NaN is near to nothing
        for step, (ours, theirs) in enumerate(losses, 1):
            if not abs(ours - theirs) <= TOLERANCE[device] * abs(ours):
                found.append(f"loss of step {step}: {ours:.6f} ({first.who}) and {theirs:.6f} ({run.who})")
    return list(dict.fromkeys(found))


def table(runs: Mapping[str, Sequence[Measured]]) -> str:
    """What came out, and whether the goal (at least as fast, at most as much memory) was reached.

    Times are quantiles over the timed steps of all processes of a side; memory is their median.
    """
    sides = [measure.quantiles([ms for run in runs[who] for ms in run.step_ms]) for who in WHO]
    ratios = {"at least as fast": sides[0][1] / sides[1][1]}
    cells = [" / ".join(f"{ms:.0f}" for ms in side) for side in sides]
    body = [["ms a step, p20/50/80", *cells, f"{ratios['at least as fast']:.2f}"]]
    for what, names, goal in (
        ("tensors, peak", ("held_bytes", "tensor_bytes"), "at most as much memory, tensors"),
        ("  held between steps", ("held_bytes",), ""),
        ("  in a step, on top", ("tensor_bytes",), ""),
        ("resident, peak of the process", ("resident_bytes",), "at most as much memory, resident"),
    ):
        ours, theirs = (median(sum(getattr(run, name) for name in names) for run in runs[who]) for who in WHO)
        ratio = ours / theirs if theirs else math.nan
        body.append([what, f"{mib(ours)} MiB", f"{mib(theirs)} MiB", f"{ratio:.2f}"])
        ratios |= {goal: ratio} if goal else {}
    first = [runs[who][0] for who in WHO]
    body.append(["tokens of step 1, labelled", *(f"{run.tokens}, {run.labelled}" for run in first), ""])
    body.append(["trained weights", *(f"{run.trained:,}" for run in first), ""])
    for step in (1, len(first[0].losses)):
        body.append([f"loss of step {step}", *(f"{run.losses[step - 1]:.6f}" for run in first), ""])
    lines = [columns(["", WHO[0], "TRL " + importlib.metadata.version("trl"), "ratio"], body), ""]
    lines += [f"{goal:36}{'held' if x <= 1 else 'MISSED'} ({x:.2f} × TRL)" for goal, x in ratios.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.beside_trl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a toy model, one round: does the comparison still run?")
    parser.add_argument("--out", type=Path, help="keep the JSON in this folder; bench/results has the last ones")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("trl") is None:
        print(NEEDS_TRL, file=sys.stderr)
        return 2
    device = pick_device("auto")
    about = measure.describe(device)
    full = ("360m", 1024, 4 * TIMED, 1) if device.type == "cuda" else ("mid", 256, TIMED, ROUNDS)
    size, tokens, timed, rounds = ("toy", 80, 2, 1) if options.tiny else full
    with tempfile.TemporaryDirectory(prefix="basic-lite-trl-") as folder:
        task = Task(Path(folder), size, tokens, WARM_UP + timed + 1)
        write_task(task)
        runs: dict[str, list[Measured]] = {who: [] for who in WHO}
        for turn in range(rounds):
            for who in WHO:
                runs[who].append(train_apart(who, task, task.folder / f"{who}-{turn}"))
                print(f"round {turn + 1}, {who}: {median(runs[who][-1].step_ms):.0f} ms a step", flush=True)
    print(f"\n{about['device']}, {size} model, {GLOBAL_BATCH} samples a step in micro-batches of {MICRO_BATCH}, "
          f"{rounds} × {timed} steps; {about['clock']}\n\n{table(runs)}")  # fmt: skip
    everyone = [run for who in WHO for run in runs[who]]
    faults = differences(everyone, device.type)
    for fault in faults:
        print(f"NOT THE SAME TASK: {fault}", file=sys.stderr)
    if options.out is not None:
        path = options.out / f"beside-trl-{device.type}{'-tiny' * options.tiny}.json"
        about |= {"trl": importlib.metadata.version("trl"), "size": size, "same_task": not faults}
        write_json(path, about | {"runs": [asdict(run) for run in everyone]})
        print(f"\nresults  {path}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
