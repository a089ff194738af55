"""The refinement curve of a run: measured beside its steps, where there is memory for it."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from basic_lite.console import Say
from basic_lite.errors import is_out_of_memory
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.premise import SeenPatches, see_patches
from basic_lite.training.step import Autocast

T = TypeVar("T")

# What `supervision.refinement_batches` counts in.
SAMPLES_PER_BATCH = 4


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
    """How many samples the refinement curve is measured on, and how many of them a batch has.

    A batch is as large as a micro-batch, so that it needs no more memory than a step, but a quarter of all at most.
    """
    samples = recipe.supervision.refinement_batches * SAMPLES_PER_BATCH
    size = max(1, min(recipe.training.micro_batch, samples // 4))
    return samples, size


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
        illnesses = {} if curve.health is None else curve.health.illnesses(supervision.settings)
        for name, text in illnesses.items():
            if name not in self._told:
                self._told.add(name)
                self.say(f"note: step {step}: {name}: {text}")
        return {"refinement": curve.to_dict()}, seen
