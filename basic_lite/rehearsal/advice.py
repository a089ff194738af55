"""Changes that make a run need less memory, cheapest first; and the message for a run that ran out of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from basic_lite.model.device import memory_of
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.combinations import works_together
from basic_lite.recipe.load import as_override
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.step import Rehearsal, Rehearser, rehearse
from basic_lite.sizes import GIB, size_text
from basic_lite.supervision.calibration import leaves_open
from basic_lite.training.looks import FEWEST_SAMPLES
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH
from basic_lite.training.start import rank_is_fixed

SMALLER_BATCH = "more, smaller micro-batches: a little slower, the same result"
# A step that the estimate said would fit and that didn't is advised down to this share of the estimate.
ENOUGH_LESS = 0.9
# A change that saves less than this share is advised only where it makes the run fit.
WORTH_SAYING = 0.003


@dataclass(frozen=True)
class Advice:
    """A change that saves memory, on top of those before it in the list, and what the run needs with it.

    Attributes:
        saved_bytes: how much less that is than before it.
    """

    overrides: tuple[str, ...]
    cost: str
    needed_bytes: int
    saved_bytes: int
    fits: bool


def advise(rehearser: Rehearser, first: Rehearsal, budget_bytes: int) -> Iterator[Advice]:
    """Changes in the order of what they cost, each on top of those before, until the run fits.

    What saves nothing, or next to nothing, is left out, and so is what a recipe file would be refused for.

    Args:
        first: the recipe's own rehearsal.
    """
    recipe, before = rehearser.recipe, first.needed_bytes
    if first.look_is_larger:
        for change, cost in smaller_looks(recipe):
            changed = changed_recipe(recipe, change)
            if works_together(changed) and (needed := _needed(rehearser, changed)) <= budget_bytes:
                yield _advice_of(change, cost, needed, before, fits=True)
                return
    changes = list(possible_changes(recipe, rehearser.frontend.tokens_per_image))
    if first.shape.samples > 1:
        changes.insert(0, ({"training.micro_batch": 1}, SMALLER_BATCH))
    for change, cost in changes:
        changed = changed_recipe(recipe, change)
        # Such as offloading where no layer is recomputed, since that saved too little here.
        if not works_together(changed):
            continue
        needed = _needed(rehearser, changed)
        fits = needed <= budget_bytes
        if needed >= before or (not fits and before - needed < WORTH_SAYING * before):
            continue
        yield _advice_of(change, cost, needed, before, fits=fits)
        if fits:
            return
        recipe, before = changed, needed


def _needed(rehearser: Rehearser, changed: Recipe) -> int:
    """What a changed recipe needs on the same machine."""
    return rehearse(changed, rehearser.frontend, rehearser.machine).needed_bytes


def _advice_of(change: dict[str, Any], cost: str, needed: int, before: int, *, fits: bool) -> Advice:
    overrides = tuple(f"{key}={as_override(value)}" for key, value in change.items())
    return Advice(overrides, cost, needed, before - needed, fits)


def advice_lines(advice: Sequence[Advice]) -> Iterator[str]:
    """Each change in a line of its own: overrides, what is needed then, how much that saves, what it costs."""
    fits = bool(advice) and advice[-1].fits
    if advice:
        goal = "to make it fit" if fits else "these changes save memory, but not enough"
        yield f"{goal}, cheapest first, each on top of those before:"
    for change in advice:
        needs = f"{size_text(change.needed_bytes)}, {size_text(change.saved_bytes)} less"
        state = "fits" if change.fits else "not yet"
        yield f"  {' '.join(change.overrides)}  →  {needs}, {state} ({change.cost})"
    if not fits:
        yield f"no {'further ' if advice else ''}change of a key makes it fit: use a smaller LLM or more memory"


def possible_changes(recipe: Recipe, visual: int) -> Iterator[tuple[dict[str, Any], str]]:
    """What can be changed in this recipe, cheapest first."""
    yield from smaller_looks(recipe)
    if recipe.training.gradient_checkpointing is not True:
        yield {"training.gradient_checkpointing": True}, "40 to 50 % more time, the same result"
    on_cpu = recipe.training.device == "cpu"
    optimizer = "adamw_8bit" if on_cpu else "paged_adamw_8bit"
    if recipe.training.optimizer != optimizer:
        yield {"training.optimizer": optimizer}, "LoRA's optimizer state in 8 bit; hardly any loss"
    if recipe.quantization.mode == "nf4" and not recipe.quantization.double:
        yield {"quantization.double": True}, "hardly any loss"
    # Copies cost time and change no number, so they come before what costs exactness.
    if not on_cpu:
        if not recipe.training.offload_activations:
            yield {"training.offload_activations": True}, "layer inputs copied to the host and back: the same result"
        if not recipe.model.tower_on_host:
            yield {"model.tower_on_host": True}, "copied to the card in each micro-batch: the same result"
    if recipe.lora.enabled and recipe.lora.dtype == "float32":
        yield {"lora.dtype": "bfloat16"}, "adapters and their gradients in half the bytes; coarser updates"
    if recipe.quantization.mode == "none":
        yield {"quantization.mode": "nf4"}, "10 to 20 % slower, a little less exact"
    rank = 0 if rank_is_fixed(recipe) else recipe.lora.rank
    while recipe.lora.enabled and rank > 16:
        rank = max(16, rank // 4)
        alpha = recipe.lora.alpha * rank / recipe.lora.rank
        yield {"lora.rank": rank, "lora.alpha": alpha}, "smaller adapters learn less"
    for length in (1536, 1024, 768):
        if visual + 128 <= length < recipe.data.max_length:
            yield {"data.max_length": length}, "longer conversations are cut"


def smaller_looks(recipe: Recipe) -> Iterator[tuple[dict[str, Any], str]]:
    """What makes a look at BASIC's premise smaller and leaves the steps as they are. A gate can't do without looks."""
    settings = recipe.supervision
    gate, count = settings.gate or leaves_open(settings), settings.refinement_batches
    # As many as a gate needs to open, half of them to choose. A batch is at most a quarter of all. On a CPU the layers
    # of those that decide may wait in the same memory.
    least = FEWEST_SAMPLES // SAMPLES_PER_BATCH
    if count > least:
        samples = f"{FEWEST_SAMPLES} samples instead of {count * SAMPLES_PER_BATCH}"
        yield {"supervision.refinement_batches": least}, f"the premise is measured on {samples}: wider intervals"
    if count and not gate:
        yield {"supervision.refinement_batches": 0}, "no refinement curve, so nobody sees whether BASIC's premise holds"


def memory_advice(recipe: Recipe, device: torch.device) -> list[str]:
    """Lines for the error of a run that ran out of memory: who holds it, what the run needs, what to change."""
    total, others = memory_of(device)
    where = "the card" if device.type == "cuda" else "this machine"
    lines = []
    if others > GIB:
        lines.append(f"of {where}'s {size_text(total)} other programs hold {size_text(others)}; close them, or:")
    try:
        return lines + list(_advice(recipe, device, where, total - others))
    except Exception as error:  # whatever it is, memory is what the user must hear of
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return [*lines, f"no estimate can be made ({type(error).__name__}: {reason})"]


def _advice(recipe: Recipe, device: torch.device, where: str, available: int) -> Iterator[str]:
    smallest = changed_recipe(recipe, {"training.micro_batch": 1})
    rehearser = Rehearser(smallest, load_frontend(smallest.model), Machine.here(smallest, device))
    rehearsal = rehearser.rehearse()
    needed = rehearsal.needed_bytes
    needs, has = size_text(needed), size_text(available)
    yield f"by the estimate this recipe needs {needs} at a micro-batch of 1; {where} has {has} for it"
    if needed < available / 2:
        yield (
            "so the model isn't the cause: look for a limit on this process (ulimit, a container's), "
            "for many or very large images, or lower data.workers"
        )
        return
    if needed <= available:
        yield "so your samples take more than it assumes (several images each?), or memory is fragmented"
    # It has to be less than what there is, and less than what was not enough.
    yield from advice_lines(list(advise(rehearser, rehearsal, min(available, int(needed * ENOUGH_LESS)))))
