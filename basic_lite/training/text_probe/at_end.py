"""The text probe at the end of a run that trains LoRA, when the trained model is saved."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from basic_lite.console import Say, command_line
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import autocast_of
from basic_lite.training.interruption import Interruption
from basic_lite.training.log import RunLog
from basic_lite.training.processes import Processes
from basic_lite.training.refinement_log import if_memory_allows
from basic_lite.training.step import Autocast
from basic_lite.training.text_probe.measure import TOKENS_AT_ONCE, measure
from basic_lite.training.text_probe.outcome import KEY, NoOutcome, Outcome
from basic_lite.training.text_probe.scoring import Stopped

# Smaller batches are tried where memory runs out; the last one is a text alone.
SIZES = (TOKENS_AT_ONCE, TOKENS_AT_ONCE // 4, 1)


def probe_at_end(
    recipe: Recipe, loaded: Loaded, processes: Processes, log: RunLog, step: int, say: Say, interruption: Interruption
) -> None:
    """Measure, say and log what became of the LLM's own ability; nothing of it can end a run whose model is saved.

    The main process does it alone. In a run of several the others are done.

    Args:
        step: the last one.
        interruption: the first signal stops it.
    """
    if not recipe.training.text_probe or not processes.is_main:
        return
    later = command_line(["basic-lite", "text-probe", str(log.path.parent)])
    try:
        found = measured(loaded, autocast_of(recipe, loaded.parts.device), stopped=lambda: interruption.requested)
    except Stopped:
        say(f"stopped: the text probe is left out; measure it later with: {later}")
        return
    except Exception as error:  # the trained model is saved, and the run's last lines are still to come
        say(f"warning: no text probe, through a fault of basic-lite's own ({type(error).__name__}: {error})")
        return
    if found is None:
        say(f"warning: no text probe: not enough memory beside the training; measure it later with: {later}")
        return
    say(f"text probe: {found.text}")
    log.write(step, {KEY: found.to_dict()})


def measured(
    loaded: Loaded,
    autocast: Autocast,
    counted: Callable[[], AbstractContextManager[Callable[[int], object]]] = lambda: nullcontext(lambda done: None),
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome | NoOutcome | None:
    """The probe, in batches for which there is memory; None: there is none for a text alone.

    Args:
        autocast: the context that the training's forwards run in.
        counted: opens a bar and gives its ``progress``; each size has its own, as it begins with the first text again.
        stopped: see ``nats_of``.

    Raises:
        Stopped: ``stopped`` says so.
    """

    def of_size(size: int) -> Outcome | NoOutcome:
        with counted() as progress:
            return measure(loaded, tokens_at_once=size, progress=progress, stopped=stopped)

    for size in SIZES:
        if (found := if_memory_allows(partial(of_size, size), autocast, lambda: None)) is not None:
            return found
    return None
