"""A loss in words, the same on the terminal, in lists and on pages."""

import math
from collections.abc import Callable, Sequence

from basic_lite.recipe.schema import Recipe

NO_NUMBER = "is no number"
# A last held-out loss that many times the lowest is worth a word.
RISE = 1.05


def loss_text(loss: float, digits: int = 3) -> str:
    """Its figure; infinity and what isn't a number have none."""
    return f"{loss:.{digits}f}" if math.isfinite(loss) else NO_NUMBER


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
