"""What BASIC will do in a run, in one plain sentence: it is on, waits for its premise, or is off, and why."""

import math

from basic_lite.data.prepare import Prepared
from basic_lite.recipe.rules import computes_das, computes_sds
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.resampling import LEAST_SAMPLES
from basic_lite.sizes import number_of
from basic_lite.supervision.calibration import scores_decide
from basic_lite.training.looks import shared_out
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH


def why_off(recipe: Recipe) -> str | None:
    """Why the recipe has no BASIC; None: it has."""
    settings = recipe.supervision
    if not settings.enabled:
        return "supervision.enabled is false"
    if recipe.stage not in settings.stages:
        return f"this is stage {recipe.stage}, and supervision.stages is {settings.stages}"
    if not computes_das(settings) and not computes_sds(settings):
        return "both of its losses are (supervision.lambda_das or supervision.direction, supervision.lambda_sds)"
    return None


def basic_text(recipe: Recipe, data: Prepared, *, shown: bool = False) -> str:
    """The sentence.

    Args:
        shown: the gate is open, in a run that continues.
    """
    if reason := why_off(recipe):
        return f"BASIC is off in this run: {reason}"
    settings = recipe.supervision
    if not settings.gate:
        few = f", in one step of {settings.every_n_steps}" if settings.every_n_steps > 1 else ""
        rising = f"; its weights rise over the first {settings.warmup_ratio:.0%}" if settings.warmup_ratio else ""
        return f"BASIC is on from the first step to the last{few}{rising}"
    if shown:
        return "BASIC is on, as it was when the run stopped, for as long as its premise is shown to hold"
    if text := _too_few(settings, data):
        return text
    return (
        "BASIC is off at first. It goes on once its premise is shown to hold and its pull to lower the loss, which may "
        "never be; supervision.gate=false turns it on from the first step"
    )


def _too_few(settings: SupervisionSection, data: Prepared) -> str | None:
    """The warning where no look can show the premise, with what would be enough; None where one can."""
    parted = scores_decide(settings)  # then as many others choose the target
    most, pictures = settings.refinement_batches * SAMPLES_PER_BATCH, data.with_image
    _, decide = shared_out(most, pictures, parted=parted)
    if decide >= LEAST_SAMPLES:
        return None
    parts = 2 if parted else 1
    batches, least = math.ceil(LEAST_SAMPLES * parts / SAMPLES_PER_BATCH), LEAST_SAMPLES * (parts + 1)
    mends = []
    if (more := least - pictures) > 0:
        mends.append(f"take {number_of(more, 'more sample')} with pictures (here are {pictures}; {least} are enough)")
    if settings.refinement_batches < batches:
        mends.append(f"set supervision.refinement_batches={batches} or more")
    choose = ", as many others choose its target" if parted else ""
    return (
        f"warning: BASIC stays off in this run: {decide} samples decide whether its premise holds{choose} and as many "
        f"are asked again, and {LEAST_SAMPLES} are the least that can show it; {' and '.join(mends)}, or set "
        "supervision.gate=false"
    )
