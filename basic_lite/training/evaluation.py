"""What a run measures beside its steps: the loss on held-out data, and the refinement curve."""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.utils.data import Dataset

from basic_lite.console import Say
from basic_lite.errors import UserError, is_out_of_memory
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.supervision import RefinementCurve, Supervision
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.premise import SeenPatches, see_patches
from basic_lite.training.batches import loading
from basic_lite.training.loss_text import NO_NUMBER, loss_text
from basic_lite.training.recovery import Recovery
from basic_lite.training.step import Autocast, StepCounts, TrainStep

T = TypeVar("T")

# What `supervision.refinement_batches` counts in.
SAMPLES_PER_BATCH = 4
# A last held-out loss that many times the lowest is worth a word.
RISE = 1.05


@torch.no_grad()
def held_out_loss(
    step: TrainStep,
    dataset: Dataset[Any],
    collate: Any,
    recipe: Recipe,
    recovery: Recovery,
    what: str,
    begin_again: Callable[[dict[str, Any]], None],
    drop: Callable[[list[str]], None],
) -> float:
    """Mean L_lm over the labelled tokens of held-out data, whatever the batches are and however many processes.

    Args:
        what: the name of the work for messages, such as "the evaluation after step 3".
        begin_again: see ``Recovery.attempts``.
        drop: takes what is wrong with this process's records that could not be read, and were left out.

    Raises:
        OutOfMemory: not even one sample has room.
        UserError: no record could be read.
    """
    processes, size = step.processes, recipe.training.micro_batch
    order = list(range(len(dataset)))
    groups = [order[i : i + size] for i in range(0, len(order), size)][processes.index :: processes.count]
    total, count = 0.0, 0
    dropped: list[str] = []

    step.parts.model.eval()
    with processes.together(), loading(dataset, groups, collate, recipe, step.device) as loader:
        for batch, problems in loader:
            dropped += problems
            if batch is None:
                continue
            for attempt in recovery.attempts([batch], what, begin_again, backward=False):
                with attempt as parts:
                    means = [float(step.forward(**step.inputs(part)).loss) for part in parts]
                    labelled = [StepCounts.of([part], recovery.image_token_id).labelled_tokens for part in parts]
            total += sum(mean * tokens for mean, tokens in zip(means, labelled, strict=True) if tokens)
            count += sum(labelled)
    step.train_mode()
    drop(dropped)
    total, count = processes.sum([total, float(count)])
    with processes.together():
        if not count:
            raise UserError(
                f"{what}: none of the {len(order):,} held-out records can be read any more; is the folder with their "
                "pictures still there? Continue with --resume once it is"
            )
    return total / count


def evaluates(recipe: Recipe, step: int, last: int) -> bool:
    """Whether held-out data is looked at after a step, from 1: every so many, and after the last."""
    every = recipe.training.eval_every
    return step == last or (every is not None and step % every == 0)


def held_out_text(step: int, loss: float, earlier: Sequence[tuple[int, float]]) -> str:
    """The loss in a line; ``earlier``: steps and losses of the run's evaluations before."""
    before = f" (was {loss_text(earlier[-1][1])} at step {earlier[-1][0]})" if earlier else ""
    return f"step {step}: held-out loss {loss_text(loss)}{before}"


def overfit_text(
    losses: Sequence[tuple[int, float]], recipe: Recipe, epochs_after: Callable[[int], float], *, new: bool = True
) -> str | None:
    """What to say of held-out losses whose last one is well above an earlier one; None: it isn't.

    Args:
        losses: steps and losses, in order.
        new: none of that data was trained on, as far as is known.
    """
    finite = [(loss, step) for step, loss in losses if math.isfinite(loss)]
    if not finite or losses[-1][1] <= RISE * min(finite)[0]:
        return None
    lowest, step = min(finite)
    shorter = f"max_steps={step}" if recipe.training.max_steps is not None else f"epochs={epochs_after(step):.3g}"
    if not math.isfinite(losses[-1][1]):
        return (
            f"held-out loss was lowest at step {step} ({lowest:.3f}) and {NO_NUMBER} now: the last weights are "
            "damaged; try a lower training.projector_learning_rate or training.learning_rate"
        )
    rise = f"held-out loss was lowest at step {step} ({lowest:.3f}) and is {losses[-1][1]:.3f} now"
    if not new:
        known = "some or all of that data was trained on before"
        return f"{rise}; {known}, so the model may only have lost what it knew of it"
    if step == 0:  # what another run had learnt
        rates = {"learning_rate": recipe.training.learning_rate} if recipe.lora.enabled else {}
        rates["projector_learning_rate"] = recipe.training.projector_learning_rate
        lower = " ".join(f"training.{name}={rate / 10:g}" for name, rate in rates.items())
        return f"{rise}: these steps made the model worse than it was at their start; try {lower}, or more data"
    return f"{rise}: the model learns the training data by heart; try training.{shorter}, or more data"


def if_memory_allows(work: Callable[[], T], autocast: Autocast, too_little: Callable[[], None]) -> T | None:
    """What ``work`` gives under the training's autocast; where memory ran out ``too_little`` is called, and None."""
    try:
        with autocast():
            return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    clear_device_cache(garbage_collection=True)
    too_little()
    return None


def curve_batches(recipe: Recipe) -> tuple[int, int]:
    """How many batches of how many samples the refinement curve is measured on.

    They are as large as micro-batches, so that they need no more memory than a step, but no more than a quarter of all.
    """
    samples = recipe.supervision.refinement_batches * SAMPLES_PER_BATCH
    size = max(1, min(recipe.training.micro_batch, samples // 4))
    return math.ceil(samples / size), size


@dataclass(frozen=True)
class RefinementLog:
    """Measures the refinement curve at a run's start, at each evaluation and at its end, and warns.

    What ails the target is said once, when it is first seen.
    """

    supervision: Supervision | None  # None: BASIC is off, and nothing is measured
    batches: Sequence[dict[str, Tensor]]  # of samples with images; none: nothing is measured
    tokenizer: Any
    say: Say
    autocast: Autocast
    fresh: bool  # the projector starts untrained, so its output at step 0 is noise and no reason to warn
    _told: set[str] = field(default_factory=set, init=False, repr=False)  # names of illnesses

    def measure(
        self, step: int, kept: Container[int] = (), *, judged: bool = True
    ) -> tuple[dict[str, Any], SeenPatches] | None:
        """Measure the curve after a step: in the form for the log, and what it was made of; None where there is none.

        Args:
            kept: see ``see_patches``.
            judged: say whether the premise holds; false where a gate says so, on samples of its own.
        """
        if self.supervision is None or not self.supervision.active or not self.batches:
            return None
        supervision = self.supervision
        seen = if_memory_allows(
            lambda: see_patches(supervision, moved(self.batches, supervision.device), self.tokenizer, kept=kept),
            self.autocast,
            lambda: self.say(
                f"warning: step {step}: no refinement curve: not enough memory for {len(self.batches[0]['input_ids'])} "
                "samples at once; lower training.micro_batch, or skip it with supervision.refinement_batches=0 (and "
                "supervision.preset=paper)"
            ),
        )
        if seen is None:
            return None
        curve = seen.curve()
        self.say(f"step {step}: {curve.summary(judged=judged)}")
        # Where there is a gate, it acts on the curve and says so.
        warning = None if supervision.settings.gate or (step == 0 and self.fresh) else curve.warning()
        if warning is not None:
            self.say(f"warning: step {step}: {warning}")
        self._tell_illnesses(step, supervision.settings, curve)
        return {"refinement": curve.to_dict()}, seen

    def _tell_illnesses(self, step: int, settings: SupervisionSection, curve: RefinementCurve) -> None:
        illnesses = {} if curve.health is None else curve.health.illnesses(settings)
        for name, text in illnesses.items():
            if name not in self._told:
                self._told.add(name)
                self.say(f"note: step {step}: {name}: {text}")
