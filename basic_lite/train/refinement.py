"""The refinement curve at a run's start and at each evaluation: in the log, and as a warning where v̂ is below v."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from basic_lite.errors import is_out_of_memory
from basic_lite.supervision import RefinementCurve, Supervision, refinement_curve
from basic_lite.train.callbacks import JsonLog
from basic_lite.train.memory import free_what_is_left

# More than one sample a batch, whatever the micro-batch: the shuffled control needs another sample's text.
SAMPLES_PER_BATCH = 4


def measure(
    supervision: Supervision, batches: Sequence[dict[str, Tensor]], tokenizer: Any, *, autocast: bool
) -> RefinementCurve:
    """The curve over collated batches, which are moved to the model's device one by one."""
    device = supervision.parts.embeddings.weight.device
    moved = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
    with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
        return refinement_curve(supervision, moved, tokenizer)


class RefinementLog(TrainerCallback):
    """Measures the curve and writes it as a log line ``{"step": …, "refinement": {…}}``."""

    def __init__(
        self,
        supervision: Supervision,
        batches: Sequence[dict[str, Tensor]],
        tokenizer: Any,
        log: JsonLog,
        say: Callable[[str], None],
        *,
        autocast: bool,
        fresh: bool,
    ) -> None:
        """``fresh``: the projector starts untrained."""
        self.supervision = supervision
        self.batches = batches
        self.tokenizer = tokenizer
        self.log = log
        self.say = say
        self.autocast = autocast
        self.fresh = fresh
        self.curves: list[tuple[int, RefinementCurve]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # a resumed run has it in its log already
            self._measure(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._measure(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps and (not self.curves or self.curves[-1][0] != state.global_step):
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        curve = self._curve(state)
        if curve is None:
            return
        self.curves.append((state.global_step, curve))
        self.log.write({"step": state.global_step, "refinement": curve.to_dict()})
        warning = curve.warning()
        if state.global_step == 0 and self.fresh:
            warning = None  # an untrained projector's output is noise to both sides
        if warning is not None:
            self.say(f"warning: step {state.global_step}: {warning}")

    def _curve(self, state: TrainerState) -> RefinementCurve | None:
        """None, and said so, where a card that has memory for the training has none for this."""
        try:
            return measure(self.supervision, self.batches, self.tokenizer, autocast=self.autocast)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_what_is_left()
        self.say(
            f"warning: step {state.global_step}: no refinement curve, for want of memory for {SAMPLES_PER_BATCH} "
            "samples at once; supervision.refinement_batches=0 leaves it out"
        )
        return None
