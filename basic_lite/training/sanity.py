"""Settings that are allowed and hardly ever meant: said before a run, with the key to change."""

import math

from basic_lite.recipe.rules import evaluates, steps_an_epoch
from basic_lite.recipe.schema import Recipe
from basic_lite.sizes import number_of

# Optimizer steps.
_TOO_FEW, _SENSIBLE = 50, 100
# A rate for a projector that is trained already. A fresh one hardly moves at it.
_FINE_TUNING_RATE = 1e-4
# Passes over the data.
MANY_EPOCHS, _ENOUGH = 30, 10


def sanity_warnings(recipe: Recipe, *, samples: int, steps: int, fresh: bool) -> list[str]:
    """What is doubtful about a run as a whole. Each text names a key and a value for it.

    Args:
        samples: training samples.
        steps: optimizer steps of the whole run.
        fresh: the projector starts untrained.
    """
    found = [
        few_steps(recipe, samples, steps),
        _fresh_projector(recipe) if fresh else None,
        _long_warm_up(recipe, steps),
        _many_passes(recipe, samples, steps),
        _evaluation(recipe, steps),
    ]
    return [text for text in found if text is not None]


def few_steps(recipe: Recipe, samples: int, steps: int) -> str | None:
    """What to change where the run is too short to teach. One that goes on from a trained model may be short."""
    training = recipe.training
    if steps >= _TOO_FEW or recipe.model.start is not None:
        return None
    what = (
        f"the run has {number_of(steps, 'optimizer step')} ({number_of(samples, 'sample')}, {training.global_batch} a "
        "step): too few to teach"
    )
    if training.max_steps is not None:
        return f"{what}; set training.max_steps={_SENSIBLE} or more, or leave it out and set training.epochs"
    batch = min(training.global_batch, max(4, 2 ** int(math.log2(max(samples // 50, 1)))))
    micro = math.gcd(batch, training.micro_batch)
    epochs = math.ceil(_SENSIBLE / math.ceil(samples / batch))
    changes = [f"training.global_batch={batch}"] * (batch != training.global_batch)
    changes += [f"training.micro_batch={micro}"] * (micro != training.micro_batch)
    changes += [f"training.epochs={epochs}"] * (epochs > training.epochs)
    return f"{what}; try {' '.join(changes)}"


def _fresh_projector(recipe: Recipe) -> str | None:
    """A projector that no earlier stage has trained, in a stage or at a rate for one that is trained."""
    rate = recipe.training.projector_learning_rate
    low = f"training.projector_learning_rate is {rate:g}, and the projector is fresh: it hardly moves"
    trained = (
        "a trained one: train stage 1 first, and name its run in model.projector; or open a whole model in model.base"
    )
    if recipe.stage == 2 and not recipe.lora.enabled:
        return (
            "stage 2 without LoRA trains the projector alone, and it is fresh: that is stage 1's work; set stage=1 "
            "with data.template=plain and training.projector_learning_rate=1e-3, or set lora.enabled=true and take "
            f"{trained}"
        )
    if rate > _FINE_TUNING_RATE:
        return None
    if recipe.stage == 2:
        return f"{low}; take {trained}"
    return f"{low}; set training.projector_learning_rate=1e-3"


def _long_warm_up(recipe: Recipe, steps: int) -> str | None:
    training = recipe.training
    if training.warmup_ratio <= 0.5 or training.scheduler == "constant":
        return None
    rising = math.ceil(steps * training.warmup_ratio)
    return f"the learning rates still rise in {rising:,} of {steps:,} steps; set training.warmup_ratio=0.03"


def _many_passes(recipe: Recipe, samples: int, steps: int) -> str | None:
    training = recipe.training
    per_pass = steps_an_epoch(recipe, samples)
    passes = steps / per_pass
    if passes <= MANY_EPOCHS:
        return None
    enough = (
        f"training.max_steps={_ENOUGH * per_pass}" if training.max_steps is not None else f"training.epochs={_ENOUGH}"
    )
    watch = "" if evaluates(recipe) else "; or see it with data.held_out=0.1"
    return (
        f"the run goes {passes:.0f} times over {samples:,} samples: it will learn them by heart and answer worse on "
        f"other pictures; set {enough}{watch}"
    )


def _evaluation(recipe: Recipe, steps: int) -> str | None:
    every = recipe.training.eval_every
    if not evaluates(recipe) or every is None or every <= steps or steps == 1:
        return None
    when = "at its end" if recipe.model.start is None else "at its start and its end"
    return (
        f"training.eval_every is {every:,} and the run has {steps:,} steps, so it evaluates {when} alone; "
        f"set training.eval_every={max(steps // 5, 1)}"
    )
