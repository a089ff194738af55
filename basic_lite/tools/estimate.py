"""``basic-lite estimate RECIPE``: what a run needs, from a rehearsal of its step; no weights, no data, no GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from basic_lite.console import quiet_libraries
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Rehearsal, Rehearser, Shape
from basic_lite.rehearsal.build import LORA, NF4, OTHER, PROJECTOR, TOWER
from basic_lite.rehearsal.machine import ALLOWANCE_BYTES
from basic_lite.rehearsal.step import (
    BASIC,
    BATCH,
    GRADIENTS,
    KEPT,
    LAYER,
    LM_LOSS,
    OPTIMIZER,
    PROJECTION,
    VISION,
)
from basic_lite.units import GIB, MIB

PARTS = {
    NF4: "the LLM's linear layers, with their statistics",
    OTHER: "embeddings, head, norms; linear layers that aren't in 4 bit",
    TOWER: "frozen",
    PROJECTOR: "float32",
    LORA: "",
    GRADIENTS: "of LoRA and projector",
    OPTIMIZER: "",
    KEPT: "",
    LAYER: "one layer's recomputed activations, gradients, dequantised weights",
    LM_LOSS: "a chunk of logits, their softmax and gradient",
    BASIC: "v̂, its gradient, chunks of logits and scores",
    VISION: "freed before the LLM starts",
    PROJECTION: "float32, kept for its backward",
    BATCH: "ids, pixels",
}
SMALLER_BATCH = "more, smaller micro-batches: a little slower, the same result"


@dataclass(frozen=True)
class Advice:
    """A change that saves memory, on top of those before it in the list, and what the run needs with it."""

    overrides: tuple[str, ...]
    cost: str
    needed_bytes: int
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """What ``estimate`` finds."""

    rehearsal: Rehearsal
    gpu_gib: float
    largest: Rehearsal | None  # with the largest micro-batch that fits and divides the global batch; None: not even 1
    advice: list[Advice] = field(default_factory=list)
    seen: dict[int, Rehearsal] = field(default_factory=dict)  # micro-batch → what was rehearsed of it

    @property
    def fits(self) -> bool:
        """With all of the optimizer's state on the card."""
        return self.rehearsal.needed_bytes <= self.gpu_gib * GIB

    @property
    def fits_paged(self) -> bool:
        """With the optimizer's pages on the host during forward and backward."""
        return self.rehearsal.least_bytes <= self.gpu_gib * GIB


def estimate(
    recipe: Recipe, *, gpu_gib: float = 24.0, measure: bool = False, console: Console | None = None
) -> Estimate:
    """Rehearse a recipe's step on its longest batch, and say what it needs and whether a card has that.

    Args:
        gpu_gib: memory of the card.
        measure: also run two real steps on this machine's GPU.

    Raises:
        UserError: configurations can't be read; ``measure`` without a GPU.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    if gpu_gib <= 0:
        raise UserError(f"--gpu is {gpu_gib:g}; give the card's memory in GiB, as in --gpu 24")
    if measure:
        from basic_lite.tools.measure import require_gpu

        require_gpu()
    started = time.perf_counter()
    frontend = load_frontend(recipe.model)
    stage = Rehearser(recipe, frontend, target_of(recipe))
    rehearsal = stage.rehearse()
    seen = {rehearsal.shape.samples: rehearsal}
    largest = largest_micro_batch(stage, rehearsal, int(gpu_gib * GIB), seen)
    result = Estimate(rehearsal, gpu_gib, largest, seen=seen)
    if not result.fits:
        result = replace(result, advice=list(advise(stage, result)))
    _show(recipe, result, console, time.perf_counter() - started)
    if measure:
        from basic_lite.tools.measure import measure_and_show

        measure_and_show(recipe, frontend, rehearsal, console)
    return result


def target_of(recipe: Recipe) -> Machine:
    """A CUDA card, but for recipes that ask for the CPU."""
    return Machine.this_cpu(recipe) if recipe.training.device == "cpu" else Machine.card(recipe)


def largest_micro_batch(
    stage: Rehearser, first: Rehearsal, budget_bytes: int, seen: dict[int, Rehearsal]
) -> Rehearsal | None:
    """The largest divisor of the global batch whose step fits.

    What grows with the micro-batch grows very nearly evenly, so one rehearsal says where to look, and the next looks.
    """
    total = stage.recipe.training.global_batch
    sizes = [n for n in range(1, total + 1) if total % n == 0]

    def guess(samples: int) -> float:
        """From the nearest size seen."""
        near = seen[min(seen, key=lambda n: abs(n - samples))]
        growing = sum(near.by_part.get(part, 0) for part in (KEPT, LAYER, PROJECTION, BASIC, BATCH))
        return near.needed_bytes + growing * (samples / near.shape.samples - 1)

    low, high = -1, len(sizes)  # places known to fit, known not to
    while high - low > 1:
        likely = [i for i in range(low + 1, high) if guess(sizes[i]) <= budget_bytes]
        if not likely and low >= 0 and guess(sizes[low + 1]) > 1.05 * budget_bytes:
            break  # the next size up is so far over that there is no need to look
        place = likely[-1] if likely else low + 1
        samples = sizes[place]
        if samples not in seen:
            shape = Shape(samples, first.shape.tokens, first.shape.images, total // samples)
            seen[samples] = stage.rehearse(shape)
        if seen[samples].needed_bytes <= budget_bytes:
            low = place
        else:
            high = place
    return seen[sizes[low]] if low >= 0 else None


def advise(stage: Rehearser, found: Estimate) -> Iterator[Advice]:
    """Changes in the order of what they cost, each on top of those before, until the run fits."""
    first, recipe = found.rehearsal, stage.recipe
    if found.largest is not None:
        yield Advice(
            (f"training.micro_batch={found.largest.shape.samples}",), SMALLER_BATCH, found.largest.needed_bytes, True
        )
        return
    before = first.needed_bytes
    if first.shape.samples > 1:
        shape = Shape(1, first.shape.tokens, first.shape.images, recipe.training.global_batch)
        recipe = _with(recipe, {"training.micro_batch": 1})
        before = (found.seen.get(1) or stage.rehearse(shape)).needed_bytes
        yield Advice(("training.micro_batch=1",), SMALLER_BATCH, before, False)
    for change, cost in _changes(recipe, stage.frontend.tokens_per_image):
        changed = _with(recipe, change)
        needed = Rehearser(changed, stage.frontend, first.target).rehearse().needed_bytes
        if needed >= before:
            continue
        recipe, before = changed, needed
        fits = needed <= found.gpu_gib * GIB
        yield Advice(tuple(f"{key}={_written(value)}" for key, value in change.items()), cost, needed, fits)
        if fits:
            return


def advice_lines(advice: Sequence[Advice]) -> Iterator[str]:
    """Each change in a line of its own: overrides, what is needed then, what it costs."""
    for change in advice:
        state = "fits" if change.fits else "not yet"
        yield f"  {' '.join(change.overrides)}  →  {change.needed_bytes / GIB:.2f} GiB, {state} ({change.cost})"
    if not advice or not advice[-1].fits:
        yield "  and still too much: a smaller LLM, or a larger card"


def _written(value: Any) -> str:
    """A value as an override has it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _changes(recipe: Recipe, visual: int) -> Iterator[tuple[dict[str, Any], str]]:
    """What can be changed in this recipe, cheapest first."""
    if not recipe.training.gradient_checkpointing:
        yield {"training.gradient_checkpointing": True}, "a third more time, the same result"
    on_cpu = recipe.training.device == "cpu"
    optimizer = "adamw_8bit" if on_cpu else "paged_adamw_8bit"
    if recipe.training.optimizer != optimizer:
        yield {"training.optimizer": optimizer}, "LoRA's optimizer state in 8 bit; hardly any loss"
    if recipe.quantization.mode == "nf4" and not recipe.quantization.double:
        yield {"quantization.double": True}, "hardly any loss"
    # Copies cost time and change no number, so they come before what costs exactness. Checkpointing, which offloading
    # goes with, is on by now.
    if not on_cpu:
        if not recipe.training.offload_activations:
            yield {"training.offload_activations": True}, "layer inputs copied to the host and back: the same result"
        if not recipe.model.tower_on_host:
            yield {"model.tower_on_host": True}, "copied to the card in each micro-batch: the same result"
    if recipe.lora.enabled and recipe.lora.dtype == "float32":
        yield {"lora.dtype": "bfloat16"}, "adapters and their gradients in half the bytes; coarser updates"
    if recipe.quantization.mode == "none":
        yield {"quantization.mode": "nf4"}, "10 to 20 % slower, a little less exact"
    rank = recipe.lora.rank
    while recipe.lora.enabled and rank > 16:
        rank = max(16, rank // 4)
        alpha = recipe.lora.alpha * rank / recipe.lora.rank
        yield {"lora.rank": rank, "lora.alpha": alpha}, "smaller adapters learn less"
    for length in (1536, 1024, 768):
        if visual + 128 <= length < recipe.data.max_length:
            yield {"data.max_length": length}, "longer conversations are cut"


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A copy of the recipe with keys ``section.key`` changed."""
    for path, value in changes.items():
        section, key = path.split(".")
        changed = getattr(recipe, section).model_copy(update={key: value})
        recipe = recipe.model_copy(update={section: changed})
    return recipe


def _show(recipe: Recipe, found: Estimate, console: Console, seconds: float) -> None:
    r, shape = found.rehearsal, found.rehearsal.shape
    table = Table(
        title=f"{recipe.name}: micro-batch {shape.samples} × {shape.tokens} tokens, {shape.images} image a sample",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("part", no_wrap=True)
    table.add_column("GiB at the peak", justify="right")
    table.add_column("at most", justify="right")
    table.add_column("")
    kept = "each layer's input (checkpointing)" if recipe.training.gradient_checkpointing else "of all layers"
    notes = PARTS | {
        KEPT: "besides the layer inputs, which are on the host" if recipe.training.offload_activations else kept,
        TOWER: "frozen; on the card for its forward only" if recipe.model.tower_on_host else PARTS[TOWER],
        LORA: f"rank {recipe.lora.rank}, {recipe.lora.dtype}",
        OPTIMIZER: f"{recipe.training.optimizer}"
        + (f"; {r.pageable_bytes / GIB:.2f} GiB of it may be paged out to the host" if r.pageable_bytes else ""),
    }
    for part, note in notes.items():
        if most := r.most_by_part.get(part):
            table.add_row(part, f"{r.by_part.get(part, 0) / GIB:.2f}", f"{most / GIB:.2f}", f"[dim]{note}[/]")
    if r.target.cuda:
        allowance = f"{ALLOWANCE_BYTES / GIB:.2f}"
        table.add_row("context, fragmentation", allowance, allowance, "[dim]an allowance, not rehearsed[/]")
    table.add_section()
    table.add_row("needed", f"{r.needed_bytes / GIB:.2f}", "", f"[dim]on {r.target.name}[/]", style="bold")
    if r.host_bytes:
        resting = {
            "each layer's input": recipe.training.offload_activations,
            "the vision tower": recipe.model.tower_on_host,
        }
        what = " and ".join(name for name, on in resting.items() if on)
        table.add_row("on the host", "", f"{r.host_bytes / GIB:.2f}", f"[dim]pinned: {what}[/]")
    console.print(table)
    for line in _verdict(found):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"rehearsed from configurations in {seconds:.1f} s; nothing was loaded", style="dim", soft_wrap=True)


def _verdict(found: Estimate) -> Iterator[str]:
    r = found.rehearsal
    card, needed = f"a card of {found.gpu_gib:g} GiB", r.needed_bytes / GIB
    if found.fits:
        yield f"[bold green]fits[/] {card}, with {found.gpu_gib - needed:.2f} GiB to spare"
    elif found.fits_paged:
        over = needed - found.gpu_gib
        yield f"[bold yellow]fits[/] {card} with {over:.2f} GiB of the optimizer's state paged out: slower steps"
    else:
        yield f"[bold red]doesn't fit[/] {card}: {needed - found.gpu_gib:.2f} GiB too much"
    basic = r.by_part.get(BASIC, 0)
    if r.most_by_part.get(BASIC):
        yield f"BASIC adds {basic / MIB:.0f} MiB to the peak, {basic / r.peak_bytes:.1%} of it"
    if found.largest is None:
        yield "not even a micro-batch of 1 fits"
    else:
        shape = found.largest.shape
        total = shape.samples * shape.accumulation
        yield f"largest training.micro_batch that fits: {shape.samples}, of those that divide global_batch {total}"
    if found.advice:
        yield "to make it fit, cheapest first, each on top of those before:"
        yield from advice_lines(found.advice)
    yield (
        f"assumed: every sample has data.max_length ({r.shape.tokens}) tokens and {r.shape.images} image; if yours are "
        "shorter, set data.max_length to what they have"
    )
