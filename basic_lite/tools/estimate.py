"""``basic-lite estimate RECIPE``: what a run needs, from a rehearsal of its step; no weights, no data, no GPU."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from basic_lite.asked_card import require_memory
from basic_lite.cards import Card, card_of
from basic_lite.console import Sheet, quiet_libraries, show, speaker
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.model.audit import Part, planned_parts
from basic_lite.model.device import memory_of
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.known import known_frontend
from basic_lite.recipe.rules import evaluates, sources_in, steps_of
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Rehearsal, Rehearser, Shape
from basic_lite.rehearsal.advice import Advice, advice_lines, advise
from basic_lite.rehearsal.build import LORA, NF4, OTHER, PROJECTOR, TOWER
from basic_lite.rehearsal.ceilings import measured_card
from basic_lite.rehearsal.cost import basic_products, looks_products, sizes_of
from basic_lite.rehearsal.hours import ON_A_CPU, CardTimes, Work, show_cards, time_line
from basic_lite.rehearsal.outlook import disk_outlook, product_dtype
from basic_lite.rehearsal.planner import ROOM, Option, Planner, smallest_cards
from basic_lite.rehearsal.step import BASIC, BATCH, GRADIENTS, KEPT, LAYER, LM_LOSS, OPTIMIZER, PROJECTION, VISION
from basic_lite.sizes import GIB, MIB, size_text
from basic_lite.tools.measure import measure_and_show, require_gpu
from basic_lite.tools.shipped import shipped_for
from basic_lite.training.plan import given_keys
from basic_lite.training.start_names import resolve_start

# Of a run whose data, and so its steps, isn't read.
ASSUMED_STEPS = 1000
# Less than this to spare is close: the context, what torch keeps and a desktop may take more than the allowance.
CLOSE_BYTES = GIB
# A file of more isn't read to count its records: that takes seconds.
COUNTED_BYTES = 256 * MIB
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


@dataclass(frozen=True)
class Estimate:
    """What ``estimate`` finds.

    Attributes:
        rehearsal: of the recipe's own plan; with `training.plan: auto`, of the one that it would take.
        fastest: the fastest plan that fits, among all; None: none does.
        plans: some that fit, fastest first.
        advice: what to change where the run doesn't fit.
        least_bytes: what the plan needs that needs least, where none fits.
    """

    rehearsal: Rehearsal
    gpu_gib: float
    own: Option
    fastest: Option | None = None
    plans: list[Option] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    least_bytes: int = 0

    @property
    def budget_bytes(self) -> int:
        """What a run may take of the card."""
        return _budget_bytes(self.gpu_gib)

    @property
    def fits(self) -> bool:
        """Whether the run fits with all of the optimizer's state on the card."""
        return self.rehearsal.needed_bytes <= self.budget_bytes

    @property
    def fits_somehow(self) -> bool:
        """Whether it fits by another plan, or with the optimizer's pages on the host."""
        return self.fits_paged or self.fastest is not None

    @property
    def fits_paged(self) -> bool:
        """Whether it fits with the optimizer's pages on the host during forward and backward."""
        return self.rehearsal.least_bytes <= self.budget_bytes


def estimate(
    recipe: Recipe, *, gpu: Card | float | None = None, measure: bool = False, console: Console | None = None
) -> Estimate:
    """Rehearse a recipe's step on its longest batch: what it needs, whether a card has that, and what is faster.

    Args:
        gpu: a card, for which time is counted then; or the memory of one in GiB, and time is counted for the card that
            is here, else for one of the table with that memory. None: 24 GiB, or this machine's for a recipe that asks
            for the CPU.
        measure: also run two real steps on this machine's GPU.

    Raises:
        UserError: configurations can't be read; ``measure`` without a GPU; a card for a recipe that asks for the CPU.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    if isinstance(gpu, Card) and recipe.training.device == "cpu":
        raise UserError(
            f"--gpu names a card, {gpu.name}, and the recipe asks for the CPU (training.device=cpu); leave --gpu out, "
            "or set training.device=auto"
        )
    if gpu is None:
        gpu = _own_gib() if recipe.training.device == "cpu" else 24.0
    gpu_gib = gpu.gib if isinstance(gpu, Card) else gpu
    require_memory(gpu_gib)
    if measure:
        require_gpu()
    started = time.perf_counter()
    recipe = resolve_start(recipe, speaker(console))
    known = known_frontend(recipe.model)
    frontend = known or load_frontend(recipe.model)
    auto = recipe.training.plan == "auto"
    given = given_keys(recipe) if auto else frozenset()
    card = gpu if isinstance(gpu, Card) else _card(recipe, gpu)
    planner = Planner(Rehearser(recipe, frontend, machine_of(recipe)), Shape.of(recipe), card, given=given)
    budget_bytes = _budget_bytes(gpu_gib)
    fastest = planner.fastest(budget_bytes)
    own = planner.own
    if auto:
        own = fastest.plan if fastest is not None else planner.careful
        recipe = own.applied(recipe)
    result = Estimate(planner.rehearse(own), gpu_gib, planner.option(own), fastest, planner.others(budget_bytes))
    if not result.fits:
        result = replace(result, advice=_advice(planner, recipe, result))
    if not result.fits_somehow:
        result = replace(result, least_bytes=planner.leanest().needed_bytes)
    _show(recipe, result, console)
    _show_plans(recipe, planner, result, console)
    whose = "the package's" if known else "the models'"
    console.print(
        f"rehearsed from {whose} configurations in {time.perf_counter() - started:.1f} s; nothing was loaded",
        style="dim",
    )
    _show_cost(recipe, planner, result, console)
    if measure:
        measure_and_show(recipe, load_frontend(recipe.model), result.rehearsal, console)
    return result


def _budget_bytes(gpu_gib: float) -> int:
    return int(gpu_gib * GIB * ROOM)


def _card(recipe: Recipe, gpu_gib: float) -> Card:
    """The ceilings that time is counted with: measured where the device is here, else of a card with such memory."""
    if recipe.training.device != "cpu" and not torch.cuda.is_available():
        return card_of(gpu_gib)
    device = torch.device("cpu" if recipe.training.device == "cpu" else "cuda")
    return measured_card(device, product_dtype(recipe, device))


def _advice(planner: Planner, recipe: Recipe, found: Estimate) -> list[Advice]:
    """Another plan where one is enough; else what changes more."""
    if found.fastest is not None:
        overrides, needed = found.fastest.plan.overrides(found.own.plan), found.fastest.needed_bytes
        return [Advice((overrides,), "the same result", needed, found.rehearsal.needed_bytes - needed, True)]
    rehearser = Rehearser(recipe, planner.frontend, planner.machine)
    return list(advise(rehearser, found.rehearsal, found.budget_bytes))


def machine_of(recipe: Recipe) -> Machine:
    """This CPU for a recipe that asks for it, else a CUDA card."""
    return Machine.this_cpu(recipe) if recipe.training.device == "cpu" else Machine.card(recipe)


def _own_gib() -> float:
    """The memory that this machine's CPU has."""
    return memory_of(torch.device("cpu"))[0] / GIB


def _show(recipe: Recipe, found: Estimate, console: Console) -> None:
    r, shape = found.rehearsal, found.rehearsal.shape
    table = Sheet(
        ("part", "at the peak", "at most", ""),
        f"{recipe.name}: micro-batch {shape.samples} × {shape.tokens} tokens, {shape.images} image a sample",
    )
    paged = f"{size_text(r.pageable_bytes)} of it may be paged out to the host"
    notes = PARTS | {
        KEPT: _kept_note(r, on_host=recipe.training.offload_activations),
        TOWER: "frozen; on the card for its forward only" if recipe.model.tower_on_host else PARTS[TOWER],
        LORA: f"rank {recipe.lora.rank}, {recipe.lora.dtype}",
        OPTIMIZER: recipe.training.optimizer + (f"; {paged}" if r.pageable_bytes else ""),
    }
    for part, note in notes.items():
        if most := r.most_by_part.get(part):
            table.add(part, size_text(r.by_part.get(part, 0)), size_text(most), note)
    if r.machine.cuda:
        allowance = size_text(r.machine.allowance_bytes)
        table.add("context, fragmentation", allowance, allowance, "an allowance, not rehearsed")
    table.end_section()
    if r.look is not None and r.look_is_larger:
        at_once = f"{r.look.samples} samples at once; it needs more than a step ({size_text(r.peak_bytes)})"
        table.add("a look at the premise", size_text(r.look.peak_bytes), "", at_once)
    table.add("needed", size_text(r.needed_bytes), "", f"on {r.machine.name}", style="bold")
    if r.host_bytes:
        inputs, tower = recipe.training.offload_activations, recipe.model.tower_on_host
        resting = {"each recomputed layer's input": inputs, "the vision tower": tower}
        what = " and ".join(name for name, on in resting.items() if on)
        table.add("on the host", "", size_text(r.host_bytes), f"pinned: {what}")
    show(console, table)
    for line in _verdict(recipe, found):
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)


def _show_plans(recipe: Recipe, planner: Planner, found: Estimate, console: Console) -> None:
    """Other ways to carry out the same step, fastest first."""
    taken = [] if found.fastest is None else [found.fastest]
    options = {option.plan: option for option in [*found.plans, *taken, found.own]}
    fits = f"{found.gpu_gib:.4g} GiB" if found.plans else f"{found.gpu_gib:.4g} GiB: none fits"
    same = "; their results are the same" if found.plans else ""
    title = f"plans for {fits}{same} (time is counted, for {planner.card.name})"
    table = Sheet(("plan", "memory", "on the host", "time", ""), title)
    for option in sorted(options.values(), key=lambda option: option.seconds):
        best, own = option.plan in [one.plan for one in taken], option.plan == found.own.plan
        auto = recipe.training.plan == "auto"
        note = "; ".join(["fastest that fits"] * best + ["this recipe"] * (own and not auto))
        table.add(
            str(option.plan),
            ("" if option.rehearsed else "≈ ") + size_text(option.needed_bytes),
            size_text(option.host_bytes) if option.host_bytes else "",
            f"{option.seconds / found.own.seconds:.2f}",
            note,
            style="bold" if best else "",
        )
    show(console, table)
    if found.fastest is not None and recipe.training.plan != "auto" and found.fastest.plan != found.own.plan:
        speaker(console)(
            f"the fastest plan: {found.fastest.plan.overrides(found.own.plan)}; or leave these keys out of the recipe "
            "and set training.plan=auto, which takes the fastest one for the memory that is free when the run starts"
        )


def _kept_note(r: Rehearsal, *, on_host: bool) -> str:
    """Which activations wait for the backward on the card."""
    if r.recomputed == 0:
        return "of all layers"
    if r.recomputed == r.layers:
        return "besides the layer inputs, which are on the host" if on_host else "each layer's input (checkpointing)"
    rest = "their inputs are on the host" if on_host else "their inputs (checkpointing)"
    return f"of {r.layers - r.recomputed} layers; of the other {r.recomputed} {rest}"


def _show_cost(recipe: Recipe, planner: Planner, found: Estimate, console: Console) -> None:
    """Time, energy and disk. Records are counted, not read, so the samples are as long as they may be."""
    machine, say = found.rehearsal.machine, speaker(console)
    parts = planned_parts(recipe, planner.frontend, machine.dtype)
    steps, note = planned_steps(recipe)
    work = longest_work(recipe, planner.frontend, parts, found.rehearsal.shape, steps, half=machine.autocast)
    if not machine.cuda:
        say(ON_A_CPU)
    elif found.fits_somehow:
        if planner.card.measured:
            say(time_line(work, work.seconds(found.own.seconds, planner.card), planner.card, note))
        show_cards(console, {recipe.name: CardTimes(work, planner, auto=recipe.training.plan == "auto")}, note)
    for line in disk_outlook(recipe, parts, steps):
        say(line)


def longest_work(
    recipe: Recipe, frontend: Frontend, parts: list[Part], shape: Shape, steps: int | None, *, half: bool
) -> Work:
    """What a run has to do whose samples are as long as they may be.

    Args:
        shape: of a micro-batch.
        steps: None: nobody knows how many, and ``ASSUMED_STEPS`` are taken.
        half: the model's forward is in 16 bit.
    """
    steps = steps or ASSUMED_STEPS
    samples = steps * recipe.training.global_batch
    labelled = shape.tokens - shape.images * frontend.tokens_per_image - 1
    sizes = sizes_of(recipe, frontend, parts, tokens=shape.tokens, images=shape.images, labelled=labelled)
    looks = looks_products(recipe, frontend, sizes, steps=steps, samples=samples, half=half)
    uncounted = "evaluations" if evaluates(recipe) else ""
    return Work(steps, samples, samples * basic_products(recipe, sizes) + looks, uncounted=uncounted)


def planned_steps(recipe: Recipe) -> tuple[int | None, str]:
    """The steps that a run would have, and what to say of their number; None: its data isn't read here."""
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps, ""
    samples = _samples_of(recipe)
    if samples is None:
        return None, "assumed, since data.train isn't read here; `train --dry-run` reads it"
    return steps_of(recipe, samples), f"{samples:,} records"


def _samples_of(recipe: Recipe) -> int | None:
    """How many records there are to train on, dropped ones included; None: counting them takes long, or can't be."""
    section = recipe.data
    sources = sources_in(section.train)
    files = [Path(source.path) for source in sources if source.path]
    if any(source.hub for source in sources) or any(f.is_file() and f.stat().st_size > COUNTED_BYTES for f in files):
        return None
    try:
        count = len(load_records(section.train, root=Path.cwd()))
    except UserError:  # it is on another machine, or isn't made yet
        return None
    return count if section.held_out is None else count - max(1, round(section.held_out * count))


def _smallest_cards(needed_bytes: int) -> str:
    cards = smallest_cards(needed_bytes)
    return f"{cards[0].gib:g} GB ({', '.join(card.name for card in cards)})" if cards else "none of the table"


def _verdict(recipe: Recipe, found: Estimate) -> Iterator[str]:
    r = found.rehearsal
    room = found.budget_bytes - r.needed_bytes
    what = "a card" if r.machine.cuda else "this machine's memory" if found.gpu_gib == _own_gib() else "a memory"
    card = f"{what} of {found.gpu_gib:.4g} GiB"
    planned = f" (the plan leaves {100 * (1 - ROOM):.0f} % of it free)"
    if found.fits:
        yield f"[bold green]fits[/] {card}, with {size_text(room)} to spare{planned}"
    elif found.fits_paged:
        yield f"[bold yellow]fits[/] {card} with {size_text(-room)} of the optimizer's state paged out: slower steps"
    else:
        yield f"[bold red]doesn't fit[/] {card}: {size_text(-room)} too much{planned}"
    if r.machine.cuda and found.fits_paged and room < CLOSE_BYTES:
        yield (
            "that is close: a desktop takes memory of the card too, and on an H200, the one card measured so far, "
            "context and fragmentation took 1.1 to 1.4 GiB; where memory runs out the run goes on by a leaner plan"
        )
    basic = r.by_part.get(BASIC, 0)
    if r.most_by_part.get(BASIC):
        yield f"BASIC adds {size_text(basic)} to the peak, {basic / r.peak_bytes:.1%} of it"
    if not found.fits_paged or (found.advice[-1:] and found.advice[-1].fits):
        yield from advice_lines(found.advice)
    if r.machine.cuda and not found.fits_somehow:
        changed = (
            f"; with all of these changes {_smallest_cards(found.advice[-1].needed_bytes)}" if found.advice else ""
        )
        yield f"the smallest card for it as it is: {_smallest_cards(found.least_bytes)}{changed}"
    # Where it is close, one that leaves room.
    room_bytes = found.budget_bytes - CLOSE_BYTES * found.fits_somehow
    tight = r.machine.cuda and (not found.fits_somehow or room < CLOSE_BYTES)
    if tight and (line := shipped_for(recipe, room_bytes / GIB)) is not None:
        yield line
    yield (
        f"assumed: every sample has data.max_length ({r.shape.tokens}) tokens and {r.shape.images} image; "
        "if yours are shorter, set data.max_length to the longest one's length for the memory, and to their mean "
        "length for the time"
    )
