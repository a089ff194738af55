"""What happens around the steps: gradient check, interruption, JSON-lines log."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from basic_lite.errors import UserError
from basic_lite.model.adapt import lora_parameters, projector_parameters
from basic_lite.model.parts import Parts

MOST_FAULTS = 10


def gradient_faults(parts: Parts, *, projector: bool = True) -> list[str]:
    """Trainable parts without a finite, non-zero gradient, each as a sentence.

    The projector's two layers are parts of their own, and so is LoRA on each linear layer. At step 1 LoRA's A matrices
    have gradient zero by construction (B is zero), so a part needs one non-zero gradient.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    if projector:
        for name, parameter in projector_parameters(parts).items():
            groups.setdefault(f"projector {name.rsplit('.', 1)[0]}", []).append(parameter)
    for name, parameter in lora_parameters(parts.model).items():
        layer = name.split(".lora_")[0].removeprefix("model.language_model.")
        groups.setdefault(f"LoRA on {layer}", []).append(parameter)
    faults = []
    for part, parameters in groups.items():
        gradients = [p.grad for p in parameters if p.requires_grad and p.grad is not None]
        if not gradients:
            faults.append(f"{part}: no gradient (frozen, or not reached by the loss)")
        elif not all(bool(torch.isfinite(g).all()) for g in gradients):
            faults.append(f"{part}: the gradient is not finite")
        elif not any(bool((g != 0).any()) for g in gradients):
            faults.append(f"{part}: the gradient is zero everywhere")
    return faults


class GradientCheck(TrainerCallback):
    """Stops the run when a part that should learn has no gradient at the first step.

    A first step of text alone can't reach the projector: that part is then looked at in the first step with an image.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.trainer: Any = None
        self._adapter_done = False
        self._projector_done = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._projector_done:
            return
        look_at_projector = self.trainer.step_has_image
        if self._adapter_done and not look_at_projector:
            return
        faults = gradient_faults(self.parts, projector=look_at_projector)
        if faults:
            raise UserError(
                f"after the backward of step {state.global_step + 1} not every trainable part has a gradient:\n  - "
                + "\n  - ".join(faults[:MOST_FAULTS])
                + (f"\n  - … and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else "")
                + "\nThe run is stopped: it would train less than the recipe says. A gradient that is zero from the "
                "start often means that labels are empty (see --dry-run); one that isn't finite, a rate or type that "
                "is too coarse (training.learning_rate, model.dtype)"
            )
        self._adapter_done = True
        self._projector_done = look_at_projector

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._projector_done and state.global_step >= state.max_steps:
            raise UserError(
                f"none of the run's {state.max_steps} steps had a sample with an image, so the projector has learnt "
                "nothing; raise training.max_steps, or take more samples with images into data.train"
            )


class Interruption(TrainerCallback):
    """Ctrl-C (or SIGTERM): finish the optimizer step, save, stop. A second Ctrl-C stops at once."""

    def __init__(self, say: Any) -> None:
        self.requested = False
        self._say = say
        self._process = os.getpid()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller owns the signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's process, which inherits the handler: its parent ends it
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._say("stopping: this step is finished and saved first (once more to stop at once, unsaved)")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control


class JsonLog(TrainerCallback):
    """``log.jsonl``: one JSON object a line, each with its step. Resuming drops the lines after the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drop lines of later steps, so that a resumed run's log reads as an uninterrupted one's."""
        if not self.path.exists():
            return
        kept = [line for line in _complete_lines(self.path) if json.loads(line).get("step", 0) <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def last_micro_batch(self, micro_batch: int) -> int:
        """The micro-batch that memory sufficed for last, at most the recipe's: a resumed run draws the same dropout."""
        for line in _complete_lines(self.path) if self.path.exists() else ():
            lowered = json.loads(line).get("out_of_memory")
            if lowered is not None:
                micro_batch = min(micro_batch, lowered["now"])
        return micro_batch

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # the last step, whatever `log_every` is
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.write({"step": state.global_step, **logs})


def tensorboard(folder: Path) -> TrainerCallback:
    """transformers' TensorBoard callback, writing into the run folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))


def _complete_lines(path: Path) -> Iterable[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except ValueError:  # a line that was cut off when the process died
            continue
        yield line
