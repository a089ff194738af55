"""What BASIC will do in a run, in one plain sentence: it is on, waits for its premise, or is off, and why."""

from basic_lite.data.prepare import Prepared
from basic_lite.recipe.rules import computes_das, computes_sds
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.calibration import scores_decide
from basic_lite.supervision.interval import LEAST_SAMPLES
from basic_lite.training.evaluation import SAMPLES_PER_BATCH


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
        few = f", in every {settings.every_n_steps}th" if settings.every_n_steps > 1 else ""
        rising = f"; its weights rise over the first {settings.warmup_ratio:.0%}" if settings.warmup_ratio else ""
        return f"BASIC is on from the first step to the last{few}{rising}"
    if shown:
        return "BASIC is on, as it was when the run stopped, for as long as its premise is shown to hold"
    pictures = sum(int(one.has_image.sum()) for one in (data.report, data.eval_report) if one is not None)
    most = min(settings.refinement_batches * SAMPLES_PER_BATCH, pictures)
    decide = most // 2 if scores_decide(settings) else most  # the other half chooses the target
    if decide < LEAST_SAMPLES:
        return (
            f"warning: BASIC stays off in this run: {decide} samples with pictures can't show that its premise holds "
            f"({LEAST_SAMPLES} are the least); take more data, raise supervision.refinement_batches, or set "
            "supervision.gate=false"
        )
    return (
        "BASIC is off until its premise is shown to hold, which it may never be; with supervision.gate=false it is on "
        "from the first step"
    )
