"""One training step of LLaVA by basic-lite and by TRL's SFTTrainer: the same model, data, LoRA and batch, LM loss only.

    python -m bench.beside_trl [--steps N] [--rounds N] [--tiny] [--device cpu|cuda] [--write]

Both sides train the model and data of ``trl_task``, each in processes of its own, in turn. basic-lite runs its own
loop with ``supervision.enabled: false``. TRL is ``SFTTrainer`` as its documentation has it: the processor, an
``images`` column, TRL's collator, a PEFT configuration with the projector in ``modules_to_save``. Two things are done
to it so that both do the same, see ``train_with_trl``.

That it is the same task is checked, not assumed: tokens and labels of the first step bit for bit, the number of trained
weights, and the losses of all steps, for which both start from the same adapters. Exit 1 where that fails. Time and
memory are reported and never gated. TRL is not a dependency of this project: exit 2 where it isn't installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console

from basic_lite.console import quiet_libraries
from basic_lite.model.load import pick_device, pick_dtype, quantization_config
from basic_lite.train.assembly import load_for_training, preflight, uses_autocast
from basic_lite.train.loop import Loop, Run
from basic_lite.train.processes import connect
from basic_lite.train.run_folder import RunFolder
from bench import measure
from bench.tables import columns, mib, write_json
from bench.trl_stopwatch import WARM_UP, FirstStep, Measured, Stopwatch
from bench.trl_task import GLOBAL_BATCH, MICRO_BATCH, Task, write_task

WHO = ("basic-lite", "TRL")
# glibc keeps most of what is freed for later, so what is resident says as much about it as about the training. With
# this it gives every block of 1 MiB and more back at once. That takes time, so such runs are not timed.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
# Losses of the same step may differ by this, relative: float32 sums in another order; with bf16 autocast, its rounding.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
NEEDS_TRL = (
    "bench.beside_trl compares with TRL, which isn't installed (it is no dependency of basic-lite): pip install trl"
)


# --- one process of one side ------------------------------------------------------------------------------------------


def train_with_basic_lite(task: Task, found: Measured, output: Path) -> None:
    """basic-lite's own loop, as ``basic_lite.run.train`` makes it, with a stopwatch on its optimizer."""
    recipe = task.recipe(output)
    device = pick_device(recipe.training.device)
    quiet_libraries()
    set_seed(recipe.seed)
    processes = connect(recipe, device, bf16=uses_autocast(recipe, device), trackers=[])
    frontend, data = preflight(recipe, device, lambda text: None)
    loaded = load_for_training(recipe, device, frontend, lambda text: None)
    watched = replace(data, collator=FirstStep(data.collator, found))
    folder = RunFolder(output)
    output.mkdir(parents=True)
    folder.begin(recipe)
    loop = Loop(Run(recipe, loaded, watched, None, folder, processes, device, Console(file=io.StringIO())))
    Stopwatch(found, task, loaded.model, loop.train_step.optimizer)
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
    settings, device = recipe.training, pick_device(task.device)
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
            optim="adamw_torch_fused" if task.device == "cuda" else "adamw_torch",
            gradient_checkpointing=settings.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=uses_autocast(recipe, device),
            use_cpu=task.device == "cpu",
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
    Stopwatch(found, task, trainer.model, trainer.create_optimizer())
    trainer.train()
    found.losses = [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]


SIDES = {"basic-lite": train_with_basic_lite, "TRL": train_with_trl}


def child(order: dict[str, Any]) -> int:
    """One run of one side, in this process."""
    who, result = order.pop("who"), Path(order.pop("result"))
    task = Task(**{**order, "folder": Path(order["folder"])})
    torch.set_num_threads(1)
    found = Measured(who)
    SIDES[who](task, found, result.with_suffix(""))
    result.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return 0


# --- both sides -------------------------------------------------------------------------------------------------------

CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def measure_in_process(task: Task, who: str, name: str, **environment: str) -> Measured:
    """One run of one side, in a process of its own with one thread. ``environment``: what else it is given there.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    result = task.folder / f"{who}-{name}.json"
    order = {**asdict(task), "folder": str(task.folder), "who": who, "result": str(result)}
    command = [sys.executable, "-m", "bench.beside_trl", "--child", json.dumps(order)]
    variables = os.environ | environment | CHILD_ENVIRONMENT
    done = subprocess.run(command, cwd=measure.ROOT, env=variables, capture_output=True, text=True)
    if done.returncode or not result.exists():
        tail = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        raise SystemExit(f"{who}, run {name}, ended with {done.returncode}:\n{tail}")
    return Measured(**json.loads(result.read_text(encoding="utf-8")))


def differences(runs: Sequence[Measured], device: str) -> list[str]:
    """Why these runs are not of the same task; empty where they are."""
    first, found = runs[0], []
    for run in runs[1:]:
        for what in ("trained", "tokens", "labelled", "digest"):
            ours, theirs = getattr(first, what), getattr(run, what)
            if ours != theirs:
                found.append(f"{what}: {ours} ({first.who}) and {theirs} ({run.who})")
        if len(run.losses) != len(first.losses):
            found.append(f"losses logged: {len(first.losses)} ({first.who}) and {len(run.losses)} ({run.who})")
        for step, (ours, theirs) in enumerate(zip(first.losses, run.losses, strict=False), 1):
            if not abs(ours - theirs) <= TOLERANCE[device] * abs(ours):
                found.append(f"loss of step {step}: {ours:.6f} ({first.who}) and {theirs:.6f} ({run.who})")
    return list(dict.fromkeys(found))


def table(task: Task, runs: Mapping[str, Sequence[Measured]], mapped: Mapping[str, Measured]) -> str:
    """What came out, and whether the goal (at least as fast, at most as much memory) was reached.

    Times are quantiles over the timed steps of all processes of a side; memory is their median.
    """
    body, ratios = [], {}

    def times(what: str, name: str) -> None:
        sides = [measure.quantiles([ms for run in runs[who] for ms in getattr(run, name)]) for who in WHO]
        ratios[name] = sides[0][1] / sides[1][1]
        cells = [" / ".join(f"{ms:.0f}" for ms in side) for side in sides]
        body.append([f"{what}, p20/50/80", *cells, f"{ratios[name]:.2f}"])

    def memory(what: str, *names: str, of: Mapping[str, Sequence[Measured]] = runs) -> None:
        sides = [sum(measure.quantiles([getattr(run, name) for run in of[who]])[1] for name in names) for who in WHO]
        ratios[what] = sides[0] / sides[1]
        body.append([what, *(f"{mib(side)} MiB" for side in sides), f"{ratios[what]:.2f}"])

    times("processor ms a step", "processor_ms")
    times("wall ms a step", "wall_ms")
    memory("tensors, peak", "tensor_bytes", "held_bytes")
    memory("  held between steps", "held_bytes")
    memory("  in a step, on top", "tensor_bytes")
    goals = {"at least as fast, median step": "wall_ms" if task.device == "cuda" else "processor_ms"}
    goals["at most as much memory, tensors"] = "tensors, peak"
    if runs[WHO[1]][0].resident_bytes:
        goals["at most as much memory, resident"] = "resident, peak beyond the model"
        memory("resident, peak beyond the model", "resident_bytes")
    if mapped:
        goals["  the same, freed blocks given back"] = "  freed blocks given back at once"
        memory("  freed blocks given back at once", "resident_bytes", of={who: [mapped[who]] for who in WHO})
    first = [runs[who][0] for who in WHO]
    body.append(["tokens of step 1, labelled", *(f"{run.tokens}, {run.labelled}" for run in first), ""])
    body.append(["trained weights", *(f"{run.trained:,}" for run in first), ""])
    for step in (1, len(first[0].losses)):
        body.append([f"loss of step {step}", *(f"{run.losses[step - 1]:.6f}" for run in first), ""])
    lines = [columns(["", WHO[0], "TRL " + importlib.metadata.version("trl"), "ratio"], body), ""]
    for goal, name in goals.items():
        lines.append(f"{goal:36}{'held' if ratios[name] <= 1 else 'MISSED'} ({ratios[name]:.2f} × TRL)")
    return "\n".join(lines)


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.beside_trl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps a process (after warm-up)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument("--tiny", action="store_true", help="a toy model, one round: does the comparison still run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=measure.pick_device().type)
    parser.add_argument("--write", action="store_true", help="keep the JSON in bench/results")
    parser.add_argument("--results-dir", type=Path, help="keep the JSON in this folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = arguments_of(arguments)
    if options.child is not None:
        return child(json.loads(options.child))
    if importlib.util.find_spec("trl") is None:
        print(NEEDS_TRL, file=sys.stderr)
        return 2
    about = measure.describe(torch.device(options.device))
    rounds = 1 if options.tiny else options.rounds
    with tempfile.TemporaryDirectory(prefix="basic-lite-trl-") as folder:
        # After the timed steps comes one that is profiled.
        task = Task(Path(folder), options.tiny, WARM_UP + options.steps + 1, options.device)
        write_task(task)
        runs: dict[str, list[Measured]] = {who: [] for who in WHO}
        for turn in range(rounds):
            for who in WHO:
                runs[who].append(measure_in_process(task, who, str(turn)))
                seconds = measure.quantiles(runs[who][-1].processor_ms)[1] / 1e3
                print(f"round {turn + 1}, {who}: {seconds:.2f} s of processor time a step", flush=True)
        mapped: dict[str, Measured] = {}
        if options.device == "cpu" and sys.platform == "linux":
            short = replace(task, steps=WARM_UP + 2)
            mapped = {who: measure_in_process(short, who, "mapped", **MAPPED) for who in WHO}
    print(f"\n{about['device']}, {task.name} model, {GLOBAL_BATCH} samples a step in micro-batches of {MICRO_BATCH}, "
          f"{rounds} × {options.steps} steps\n\n{table(task, runs, mapped)}")  # fmt: skip
    faults = differences([*runs[WHO[0]], *runs[WHO[1]]], options.device)
    for fault in faults:
        print(f"NOT THE SAME TASK: {fault}", file=sys.stderr)
    target = measure.ROOT / "bench" / "results" if options.write else options.results_dir
    if target is not None:
        path = target / f"beside-trl-{options.device}{'-tiny' if options.tiny else ''}.json"
        result = {**about, "trl": importlib.metadata.version("trl"), "size": asdict(task.size), "same_task": not faults}
        result["runs"] = [asdict(run) for who in WHO for run in runs[who]]
        write_json(path, result | {"runs_mapped": [asdict(run) for run in mapped.values()]})
        print(f"\nresults  {path}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
