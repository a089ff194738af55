"""`training.plan: auto`: the plan that a run takes when it starts, and what it says of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch

from basic_lite.cards import card_of
from basic_lite.console import Say
from basic_lite.data.check import DataReport
from basic_lite.model.device import memory_of
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.rules import batch_problem
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.batch import Shape
from basic_lite.rehearsal.ceilings import measured_card
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.outlook import product_dtype
from basic_lite.rehearsal.planner import ROOM, Option, Planner
from basic_lite.rehearsal.step import Rehearser
from basic_lite.sizes import GIB, size_text
from basic_lite.training.plan import FIELDS, Plan, given_keys, with_given
from basic_lite.training.processes import ALONE, Processes
from basic_lite.training.run_folder import RunFolder

LATER = (
    "note: training.plan is auto, and the plan is chosen on the card when the run starts; what follows is for the most "
    "careful one. `basic-lite estimate RECIPE --gpu GIB` shows the plans for a card"
)
# Of the memory that a CPU has free: data workers, the disk's cache and other programs live in it too.
CPU_SHARE = 0.5


def plan_of_run(
    recipe: Recipe,
    frontend: Frontend,
    report: DataReport,
    folder: RunFolder,
    processes: Processes,
    device: torch.device,
    say: Say,
) -> tuple[Recipe, Callable[[Plan], Plan | None] | None]:
    """How a run carries out its steps: as the recipe says, or the fastest way that fits; and what it falls to.

    Returns:
        The recipe with the plan, and what finds the next plan when memory runs out (see ``next_plan_finder``).
    """
    earlier = folder.checkpoint.recipe if folder.checkpoint is not None else None
    settled = settle_plan(recipe, frontend, report, device, say, earlier=earlier, processes=processes)
    return settled, next_plan_finder(settled, frontend, report, device)


def settle_plan(
    recipe: Recipe,
    frontend: Frontend,
    report: DataReport,
    device: torch.device,
    say: Say,
    *,
    earlier: Recipe | None = None,
    processes: Processes = ALONE,
) -> Recipe:
    """The recipe with the plan that its run takes. With `training.plan: manual` it is the recipe's own.

    Args:
        report: of the training data: memory is for its longest sample, time for its mean one.
        earlier: the recipe of the checkpoint that the run continues from; its plan stays, but for a micro-batch that
            doesn't divide over the processes that there are now.
    """
    if recipe.training.plan != "auto":
        if device.type == "cuda" and processes.is_main:
            say(memory_text(recipe, frontend, report, device))
        return recipe
    given = given_keys(recipe)
    if earlier is not None:
        had = Plan.of(earlier, frontend.layer_count)
        kept = with_given(had, recipe, given)
        divided = _divided(kept, recipe.training.global_batch, processes.count)
        if divided != kept:
            say(
                f"plan: {divided}: the run had micro-batch {kept.micro_batch}, which on each of {processes.count} "
                f"processes does not divide the global batch {recipe.training.global_batch}; the same result"
            )
        elif kept == had:
            say(f"plan: {kept}, as the run had it")
        else:
            say(f"plan: {kept}: the run had {had}, and now {kept.overrides(had)} is given; the same result")
        return divided.applied(recipe)
    available = min(processes.gather(available_bytes(device)))
    chosen = None
    with processes.together():
        if processes.is_main:
            planner = planner_here(recipe, frontend, report, device, given=given, processes=processes.count)
            chosen = planner.fastest(available) or planner.leanest()
            for line in _text(planner, chosen, available, device):
                say(line)
    plan: Plan = processes.from_main(chosen and chosen.plan)
    return plan.applied(recipe)


def memory_text(recipe: Recipe, frontend: Frontend, report: DataReport, device: torch.device) -> str:
    """What the recipe's own plan needs, rehearsed in some 5 s for 7B, of what the device has.

    It is a forecast, so no fault in it ends a run.
    """
    try:
        needed = Rehearser(recipe, frontend, Machine.here(recipe, device)).rehearse(
            Shape.longest(recipe, frontend, report)
        )
    except Exception as error:
        return f"note: the memory of a step can't be rehearsed here ({type(error).__name__}: {error})"
    total, others = memory_of(device)
    text = f"memory: a step needs {size_text(needed.needed_bytes)} (rehearsed) of the device's {size_text(total)}"
    text += f", of which other programs hold {size_text(others)}" if others else ""
    if needed.needed_bytes <= total - others:
        return text
    return f"warning: {text}; training.plan=auto takes the fastest plan that fits, `basic-lite estimate` says what else"


def _divided(plan: Plan, whole: int, processes: int) -> Plan:
    """The plan with the largest micro-batch, of those up to its own, that divides the global batch of ``whole``."""
    sizes = (n for n in range(plan.micro_batch, 0, -1) if batch_problem(n, whole, processes) is None)
    return replace(plan, micro_batch=next(sizes, plan.micro_batch))


def planner_here(
    recipe: Recipe,
    frontend: Frontend,
    report: DataReport,
    device: torch.device,
    *,
    given: frozenset[str] = frozenset(),
    processes: int = 1,
) -> Planner:
    """The planner of a recipe on its data and on a device of this machine, whose ceilings are measured."""
    card = measured_card(device, product_dtype(recipe, device))
    return Planner.on_data(Rehearser(recipe, frontend, Machine.here(recipe, device)), report, card, given, processes)


def next_plan_finder(
    recipe: Recipe, frontend: Frontend, report: DataReport, device: torch.device
) -> Callable[[Plan], Plan | None] | None:
    """What finds the next plan when a run is out of memory; None on a CPU, whose memory nobody limits.

    The planner is made when it is first needed. Then there is no memory to measure the card with, so its ceilings are
    the table's.
    """
    if device.type != "cuda":
        return None

    @cache
    def planner() -> Planner:
        card = card_of(torch.cuda.get_device_properties(device).total_memory / GIB)
        return Planner.on_data(Rehearser(recipe, frontend, Machine.here(recipe, device)), report, card)

    return lambda failed: planner().after(failed)


def available_bytes(device: torch.device) -> int:
    """Bytes that a plan may need here."""
    total, others = memory_of(device)
    return int((total - others) * (ROOM if device.type == "cuda" else CPU_SHARE))


def _text(planner: Planner, chosen: Option, available: int, device: torch.device) -> Iterator[str]:
    """What was taken, and why."""
    where = "of the card's free memory" if device.type == "cuda" else "of this machine's free memory, half of it"
    needs = f"needs {size_text(chosen.needed_bytes)} (rehearsed), and {size_text(available)} {where} may be used"
    if chosen.needed_bytes > available:
        yield (
            f"warning: no plan fits: the one that needs least, {chosen.plan}, {needs}; "
            "`basic-lite estimate` says what else to change"
        )
        return
    slower = planner.option(planner.careful)
    saved = 1 - chosen.seconds / slower.seconds
    less = f"about {saved:.0%} less time than with {slower.plan} (predicted), " if saved >= 0.005 else ""
    yield f"plan: {chosen.plan}: {needs}; {less}the same result"
    if pinned := planner.own.typed(planner.given):
        rest = "so there was nothing to choose" if len(pinned) == len(FIELDS) else "so they were not chosen"
        yield f"note: the recipe itself gives {', '.join(pinned)}, {rest}; training.plan is auto"
