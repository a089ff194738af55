"""One training step of LLaVA by basic-lite and by TRL's SFTTrainer: the same model, data, LoRA and batch, LM loss only.

    python -m bench.beside_trl [--steps N] [--rounds N] [--tiny] [--device cpu|cuda] [--write]

The model and data are those of ``midsize``, written as one llava-hf checkpoint that both open: NF4 for the LLM's linear
layers, LoRA on all of them, the projector trained in float32, one learning rate, AdamW, gradient checkpointing. Each
side runs in processes of its own, in turn. basic-lite is its own ``train`` with ``supervision.enabled: false``; TRL is
``SFTTrainer`` as its documentation has it: the processor, an ``images`` column, TRL's collator, a PEFT configuration
with the projector in ``modules_to_save``. Two things are done to it so that both do the same, see ``train_with_trl``.

That it is the same task is checked, not assumed: tokens and labels of the first step bit for bit, the number of trained
weights, and the losses of all steps, for which both start from the same adapters. Exit 1 where that fails. Time and
memory are reported and never gated. TRL is not a dependency of this project: exit 2 where it isn't installed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from basic_lite.recipe.schema import Recipe
from bench import measure, midsize

WHO = ("basic-lite", "TRL")
WARM_UP = 2
# glibc keeps most of what is freed for later, so what is resident says as much about it as about the training. With
# this it gives every block of 1 MiB and more back at once. That takes time, so such runs are not timed.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
MICRO_BATCH, GLOBAL_BATCH = 2, 4
# Losses of the same step may differ by this, relative: float32 sums in another order; with bf16 autocast, its rounding.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
NEEDS_TRL = (
    "bench.beside_trl compares with TRL, which isn't installed (it is no dependency of basic-lite): pip install trl"
)


# --- what both sides train --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Where the checkpoint and the data are, and how long both train."""

    folder: Path
    tiny: bool
    steps: int
    device: str

    @property
    def parts(self) -> midsize.Parts:
        return midsize.Parts.of(self.folder, midsize.TINY if self.tiny else midsize.MID)

    @property
    def llava(self) -> Path:
        return self.folder / "llava"

    @property
    def rows(self) -> Path:
        """TRL's rows, in the order in which basic-lite's sampler draws the samples."""
        return self.folder / "rows.json"

    def recipe(self, output: Path) -> Recipe:
        return midsize.stage2(
            self.parts,
            device=self.device,
            output=output,
            micro_batch=MICRO_BATCH,
            global_batch=GLOBAL_BATCH,
            max_steps=self.steps,
            changes={
                "model": {"base": str(self.llava)},
                "supervision.enabled": False,
                "training.learning_rate": 2e-4,
                "training.projector_learning_rate": 2e-4,
                "training.threads": 1,
            },
        )


def write_task(task: Task) -> None:
    """Checkpoints, the LLaVA that they make together with its processor, and TRL's rows."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from basic_lite.data.prepare import prepare_data
    from basic_lite.data.templates import V1_SYSTEM
    from basic_lite.model.frontend import load_frontend
    from basic_lite.model.load import load_base

    midsize.write(task.folder, task.parts.size, samples=task.steps * GLOBAL_BATCH)
    torch.manual_seed(0)  # the projector's
    composed = midsize.stage2(task.parts, changes={"quantization.mode": "none"})
    loaded = load_base(composed, torch.device("cpu"))
    model = LlavaForConditionalGeneration(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    # TRL rounds what it trains of a quantised model to bf16, so both start from such a projector.
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(task.llava)
    frontend = loaded.frontend
    LlavaProcessor(
        image_processor=frontend.image_processor,
        tokenizer=frontend.tokenizer,
        patch_size=task.parts.size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
    ).save_pretrained(task.llava)

    recipe = task.recipe(task.folder)
    data = prepare_data(recipe, load_frontend(recipe.model), say=lambda line: None)
    records = json.loads(task.parts.data.read_text(encoding="utf-8"))
    tokenizer, rows = frontend.tokenizer, []
    for index in data.sampler:
        record = records[int(data.train.indices[index])]
        question, answer = (turn["value"] for turn in record["conversations"])
        rows.append(
            {
                "prompt": f"{tokenizer.bos_token}{V1_SYSTEM} USER: {question} ASSISTANT:",
                "completion": f" {answer}{tokenizer.eos_token}",
                "images": [str(task.parts.images / record["image"])],
            }
        )
    task.rows.write_text(json.dumps(rows), encoding="utf-8")


# --- one process of one side ------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one process measured. Times are of whole steps, data loading and logging included, warm-up left out.

    ``resident_bytes``: the most that was resident before the profiled step, beyond what was when training began; pages
    of libraries, which are read in when they are first needed, are not counted.
    ``tensor_bytes``: the most that tensors took in one step, on top of ``held_bytes``, those alive between steps
    (weights, optimizer state). On a GPU ``tensor_bytes`` + ``held_bytes`` is the caching allocator's peak.
    """

    who: str
    processor_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    resident_bytes: int = 0
    held_bytes: int = 0
    tensor_bytes: int = 0
    labelled: int = 0
    tokens: int = 0
    digest: str = ""
    trained: int = 0


class FirstStep:
    """Wraps a collator and notes what the first step's samples are: tokens, labels, a digest of both."""

    def __init__(self, collator: Callable[..., Any], run: Run) -> None:
        self.collator, self.run = collator, run
        self.left = GLOBAL_BATCH // MICRO_BATCH

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collator(samples)
        if self.left:
            self.left -= 1
            kept = batch["attention_mask"].bool()
            ids, labels = batch["input_ids"][kept], batch["labels"][kept]
            self.run.tokens += len(ids)
            self.run.labelled += int((labels != -100).sum())
            content = self.run.digest.encode() + ids.numpy().tobytes() + labels.numpy().tobytes()
            self.run.digest = hashlib.sha256(content).hexdigest()
        return batch


class Stopwatch(TrainerCallback):
    """Measures a run from inside: every step's time, memory of the timed ones; the last step is profiled, not timed."""

    def __init__(self, run: Run, device: str) -> None:
        self.run, self.device = run, device
        self.before = (0.0, 0.0)
        self.resident = 0
        self.record: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        draw_adapters(model)
        self.run.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        gc.collect()
        self.resident = reset_resident_peak()
        self.before = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        processor, wall = self._now()
        step, last = state.global_step, state.max_steps
        if WARM_UP < step < last:
            self.run.processor_ms.append(1e3 * (processor - self.before[0]))
            self.run.wall_ms.append(1e3 * (wall - self.before[1]))
        if step == last - 1:
            self.run.resident_bytes = resident_peak() - self.resident
            self._record_last_step()
        elif step == last:
            self._read_record()
        self.before = self._now()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.run.losses.append(float(logs["loss"]))
            self.run.grad_norms.append(float(logs["grad_norm"]))

    def _now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def _record_last_step(self) -> None:
        gc.collect()
        if self.device == "cuda":
            self.run.held_bytes = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        self.run.held_bytes = bytes_of_tensors()
        self.record = measure.memory_record()
        self.record.start()

    def _read_record(self) -> None:
        if self.device == "cuda":
            self.run.tensor_bytes = torch.cuda.max_memory_allocated() - self.run.held_bytes
            return
        self.record.stop()
        self.run.tensor_bytes = measure.peak_of(self.record)


def draw_adapters(model: nn.Module) -> None:
    """Give LoRA's A the same values on both sides (B is zero), so that losses agree beyond the first step."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            place = name[name.index("layers.") :]
            seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "little")
            values = measure.draw(*parameter.shape, device=torch.device("cpu"), seed=seed) / parameter.shape[1] ** 0.5
            with torch.no_grad():
                parameter.copy_(values)


def bytes_of_tensors() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # By type: asking lazy modules for their class would import them.
        if issubclass(type(thing), Tensor) and thing.device.type == "cpu":
            with suppress(RuntimeError, NotImplementedError):  # no storage of its own
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def reset_resident_peak() -> int:
    """Give freed memory back, start the peak anew, and say how many bytes are resident. Linux; elsewhere 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") - _status("RssFile")


def resident_peak() -> int:
    """The most bytes resident at once since ``reset_resident_peak``; file pages, which only grow, left out."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def train_with_basic_lite(task: Task, run: Run, output: Path) -> None:
    """``basic_lite.run.train``, with a stopwatch among its trainer's callbacks."""
    import io

    from rich.console import Console

    from basic_lite import run as basic_lite_run

    build = basic_lite_run.build_trainer

    def build_with_stopwatch(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.data_collator = FirstStep(trainer.data_collator, run)
        trainer.add_callback(Stopwatch(run, task.device))
        return trainer

    with mock.patch.object(basic_lite_run, "build_trainer", build_with_stopwatch):
        basic_lite_run.train(task.recipe(output), console=Console(file=io.StringIO()))


def train_with_trl(task: Task, run: Run, output: Path) -> None:
    """``SFTTrainer`` over the same checkpoint and rows.

    Two things are not its default. Its rows come in the order of basic-lite's (``train_sampling_strategy``), and
    trained weights are float32: TRL makes those of a quantised model bf16, which basic-lite doesn't, and which without
    autocast could not be multiplied with the float32 features that reach the projector.
    """
    from datasets import Dataset, Image, List
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from basic_lite.model.load import pick_device, pick_dtype, quantization_config
    from basic_lite.train.arguments import accumulation_of, use_autocast

    recipe = task.recipe(output)
    settings, device = recipe.training, pick_device(task.device)
    dtype = pick_dtype(recipe.model.dtype, device)
    rows = json.loads(task.rows.read_text(encoding="utf-8"))
    data = Dataset.from_list(rows).cast_column("images", List(Image()))
    trainer = SFTTrainer(
        model=str(task.llava),
        args=SFTConfig(
            output_dir=str(output),
            model_init_kwargs={"dtype": dtype},
            max_length=recipe.data.max_length,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=accumulation_of(recipe),
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
            bf16=use_autocast(recipe, device),
            use_cpu=task.device == "cpu",
            seed=recipe.seed,
            train_sampling_strategy="sequential",
            dataloader_num_workers=recipe.data.workers,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data,
        quantization_config=quantization_config(
            recipe.quantization, dtype, device, ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
        ),
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
    trainer.data_collator = FirstStep(trainer.data_collator, run)
    trainer.add_callback(Stopwatch(run, task.device))
    trainer.train()


# --- both sides -------------------------------------------------------------------------------------------------------


def measure_in_process(task: Task, who: str, name: str, **environment: str) -> Run:
    """One run of one side, in a process of its own with one thread. ``environment``: what else it is given there.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    result = task.folder / f"{who}-{name}.json"
    environment = (
        os.environ
        | environment
        | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    )
    order = {**asdict(task), "folder": str(task.folder), "who": who, "result": str(result)}
    command = [sys.executable, "-m", "bench.beside_trl", "--child", json.dumps(order)]
    done = subprocess.run(command, cwd=measure.ROOT, env=environment, capture_output=True, text=True)
    if done.returncode or not result.exists():
        raise SystemExit(
            f"{who}, run {name}, ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return Run(**json.loads(result.read_text(encoding="utf-8")))


def child(order: dict[str, Any]) -> int:
    who, result = order.pop("who"), Path(order.pop("result"))
    task = Task(**{**order, "folder": Path(order["folder"])})
    torch.set_num_threads(1)
    run = Run(who)
    sides = {"basic-lite": train_with_basic_lite, "TRL": train_with_trl}
    sides[who](task, run, result.with_suffix(""))
    result.write_text(json.dumps(asdict(run)), encoding="utf-8")
    return 0


def differences(runs: Sequence[Run], device: str) -> list[str]:
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


@dataclass(frozen=True)
class Side:
    """All runs of one side: quantiles over the timed steps of all its processes, memory their median."""

    processor_ms: tuple[float, float, float]
    wall_ms: tuple[float, float, float]
    resident_bytes: float
    tensor_bytes: float
    held_bytes: float

    @staticmethod
    def of(runs: Sequence[Run]) -> Side:
        def middle(values: list[int]) -> float:
            return float(torch.tensor(values, dtype=torch.float64).median())

        return Side(
            quantiles([ms for run in runs for ms in run.processor_ms]),
            quantiles([ms for run in runs for ms in run.wall_ms]),
            middle([run.resident_bytes for run in runs]),
            middle([run.tensor_bytes for run in runs]),
            middle([run.held_bytes for run in runs]),
        )


def quantiles(values: list[float]) -> tuple[float, float, float]:
    p20, p50, p80 = (float(torch.tensor(values, dtype=torch.float64).quantile(q)) for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


def table(task: Task, runs: Mapping[str, Sequence[Run]], mapped: Mapping[str, Run]) -> str:
    """What came out, and whether the goal (at least as fast, at most as much memory) was reached."""
    ours, theirs = (Side.of(runs[who]) for who in WHO)
    first, other = (runs[who][0] for who in WHO)
    lines = [f"{'':34}{WHO[0]:>26}{'TRL ' + importlib.metadata.version('trl'):>26}{'ratio':>8}"]

    def row(what: str, a: str, b: str, ratio: float | None = None) -> None:
        lines.append(f"{what:34}{a:>26}{b:>26}" + (f"{ratio:8.2f}" if ratio is not None else ""))

    def times(side: tuple[float, float, float]) -> str:
        return " / ".join(f"{ms:.0f}" for ms in side)

    def mib(size: float) -> str:
        return f"{size / 2**20:.1f} MiB"

    row("processor ms a step, p20/50/80", times(ours.processor_ms), times(theirs.processor_ms),
        ours.processor_ms[1] / theirs.processor_ms[1])  # fmt: skip
    row("wall ms a step, p20/50/80", times(ours.wall_ms), times(theirs.wall_ms), ours.wall_ms[1] / theirs.wall_ms[1])
    sums = [side.tensor_bytes + side.held_bytes for side in (ours, theirs)]
    row("tensors, peak", mib(sums[0]), mib(sums[1]), sums[0] / sums[1])
    row("  held between steps", mib(ours.held_bytes), mib(theirs.held_bytes), ours.held_bytes / theirs.held_bytes)
    row(
        "  in a step, on top", mib(ours.tensor_bytes), mib(theirs.tensor_bytes), ours.tensor_bytes / theirs.tensor_bytes
    )
    if theirs.resident_bytes:
        row("resident, peak beyond the model", mib(ours.resident_bytes), mib(theirs.resident_bytes),
            ours.resident_bytes / theirs.resident_bytes)  # fmt: skip
    if mapped:
        a, b = (mapped[who].resident_bytes for who in WHO)
        row("  freed blocks given back at once", mib(a), mib(b), a / b)
    row("tokens of step 1, labelled", f"{first.tokens}, {first.labelled}", f"{other.tokens}, {other.labelled}")
    row("trained weights", f"{first.trained:,}", f"{other.trained:,}")
    row("loss of step 1", f"{first.losses[0]:.6f}", f"{other.losses[0]:.6f}")
    row(f"loss of step {len(first.losses)}", f"{first.losses[-1]:.6f}", f"{other.losses[-1]:.6f}")
    row("gradient norm of step 1", f"{first.grad_norms[0]:.6f}", f"{other.grad_norms[0]:.6f}")
    clock = "wall_ms" if task.device == "cuda" else "processor_ms"
    goals = {"at least as fast, median step": getattr(ours, clock)[1] / getattr(theirs, clock)[1]}
    goals["at most as much memory, tensors"] = sums[0] / sums[1]
    if theirs.resident_bytes:
        goals["at most as much memory, resident"] = ours.resident_bytes / theirs.resident_bytes
    if mapped:
        a, b = (mapped[who].resident_bytes for who in WHO)
        goals["  the same, freed blocks given back"] = a / b
    lines.append("")
    lines += [f"{goal:36}{'held' if ratio <= 1 else 'MISSED'} ({ratio:.2f} × TRL)" for goal, ratio in goals.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.beside_trl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps a process (after warm-up)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument("--tiny", action="store_true", help="a toy model, one round: does the comparison still run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=measure.pick_device().type)
    parser.add_argument("--write", action="store_true", help="keep the JSON in bench/results")
    parser.add_argument("--results-dir", type=Path, help="keep the JSON in this folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
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
        runs: dict[str, list[Run]] = {who: [] for who in WHO}
        for number in range(rounds):
            for who in WHO:
                run = measure_in_process(task, who, str(number))
                runs[who].append(run)
                seconds = quantiles(run.processor_ms)[1] / 1e3
                print(f"round {number + 1}, {who}: {seconds:.2f} s of processor time a step", flush=True)
        mapped: dict[str, Run] = {}
        if options.device == "cpu" and sys.platform == "linux":
            short = replace(task, steps=WARM_UP + 2)
            mapped = {who: measure_in_process(short, who, "mapped", **MAPPED) for who in WHO}
    print(f"\n{about['device']}, {'toy' if options.tiny else 'mid-size'} model, {GLOBAL_BATCH} samples a step in "
          f"micro-batches of {MICRO_BATCH}, {rounds} × {options.steps} steps\n")  # fmt: skip
    print(table(task, runs, mapped))
    faults = differences([*runs[WHO[0]], *runs[WHO[1]]], options.device)
    for fault in faults:
        print(f"NOT THE SAME TASK: {fault}", file=sys.stderr)
    target = measure.ROOT / "bench" / "results" if options.write else options.results_dir
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"beside-trl-{options.device}{'-tiny' if options.tiny else ''}.json"
        trl = importlib.metadata.version("trl")
        sizes = asdict(midsize.TINY if options.tiny else midsize.MID)
        result = {**about, "trl": trl, "size": sizes, "same_task": not faults,
                  "runs": [asdict(run) for who in WHO for run in runs[who]],
                  "runs_mapped": [asdict(run) for run in mapped.values()]}  # fmt: skip
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nresults  {path}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
