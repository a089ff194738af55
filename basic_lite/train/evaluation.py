"""What a run measures beside its steps: the loss on held-out data, and the refinement curve."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.utils.data import Dataset

from basic_lite.console import Say
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import is_out_of_memory
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import RefinementCurve, Supervision, refinement_curve
from basic_lite.train.batches import loading
from basic_lite.train.processes import Processes
from basic_lite.train.recovery import Recovery
from basic_lite.train.step import TrainStep

# More than one sample a batch, whatever the micro-batch: the shuffled control needs another sample's text.
SAMPLES_PER_BATCH = 4


@torch.no_grad()
def held_out_loss(
    step: TrainStep,
    dataset: Dataset[Any],
    collate: Any,
    recipe: Recipe,
    recovery: Recovery,
    what: str,
    begin_again: Callable[[dict[str, int]], None],
) -> float:
    """Mean L_lm over the labelled tokens of held-out data, whatever the batches are and however many processes.

    Args:
        what: the name of the work for messages, such as "the evaluation after step 3".
        begin_again: see ``Recovery.attempts``.

    Raises:
        OutOfMemory: not even one sample has room.
    """
    processes, size = step.processes, recipe.training.micro_batch
    order = list(range(len(dataset)))
    groups = [order[i : i + size] for i in range(0, len(order), size)][processes.index :: processes.count]
    total, count = 0.0, 0

    step.parts.model.eval()
    with processes.together(), loading(dataset, groups, collate, recipe, step.device) as loader:
        for batch in loader:
            for attempt in recovery.attempts([batch], what, begin_again):
                with attempt as parts:
                    means = [float(step.forward(**step.inputs(part)).loss) for part in parts]
                    labelled = [int((part["labels"][:, 1:] != IGNORE).sum()) for part in parts]
            total += sum(mean * tokens for mean, tokens in zip(means, labelled, strict=True) if tokens)
            count += sum(labelled)
    step.train_mode()
    total, count = processes.sum([total, float(count)])
    return total / max(count, 1)


def measure_curve(
    supervision: Supervision,
    batches: Sequence[dict[str, Tensor]],
    tokenizer: Any,
    autocast: Callable[[], AbstractContextManager[Any]] | None,
) -> RefinementCurve:
    """The curve over collated batches, which are moved to the model's device one by one."""
    device = supervision.parts.embeddings.weight.device
    moved = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
    with autocast() if autocast is not None else nullcontext():
        return refinement_curve(supervision, moved, tokenizer)


class RefinementLog:
    """Measures the refinement curve at a run's start, at each evaluation and at its end, and warns.

    Only the main process measures.
    """

    def __init__(
        self,
        supervision: Supervision | None,
        batches: Sequence[dict[str, Tensor]],
        tokenizer: Any,
        say: Say,
        processes: Processes,
        *,
        autocast: Callable[[], AbstractContextManager[Any]] | None,
        fresh: bool,
    ) -> None:
        """
        Args:
            supervision: None: BASIC is off, and nothing is measured.
            batches: batches of samples with images; none: nothing is measured.
            fresh: the projector starts untrained, so its output at step 0 is noise and no reason to warn.
        """
        self._supervision = supervision if supervision is not None and supervision.active else None
        self._batches, self._tokenizer, self._say = batches, tokenizer, say
        self._autocast, self._fresh = autocast, fresh
        self._on = self._supervision is not None and bool(batches) and processes.is_main

    def measure(self, step: int) -> dict[str, Any] | None:
        """Measure the curve after a step, in the form for the log; None where there is none."""
        if not self._on:
            return None
        assert self._supervision is not None
        try:
            curve = measure_curve(self._supervision, self._batches, self._tokenizer, self._autocast)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            warning = None if step == 0 and self._fresh else curve.warning()
            if warning is not None:
                self._say(f"warning: step {step}: {warning}")
            return {"refinement": curve.to_dict()}
        clear_device_cache(garbage_collection=True)
        self._say(
            f"warning: step {step}: no refinement curve: not enough memory for {SAMPLES_PER_BATCH} samples at once; "
            "set supervision.refinement_batches=0 to skip it"
        )
        return None
