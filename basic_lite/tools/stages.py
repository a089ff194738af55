"""``basic-lite run``: all of its recipes are looked at, and what they take is shown, before the first one begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from basic_lite.choices import new_place
from basic_lite.console import Say, Sheet, quiet_libraries, show, speaker
from basic_lite.errors import UserError, each_of, in_one
from basic_lite.model.audit import Part, planned_parts
from basic_lite.model.device import memory_of, tell_device
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import pick_device
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Rehearsal, Rehearser, Shape
from basic_lite.rehearsal.ceilings import measured_card
from basic_lite.rehearsal.choice import LATER, settle_plan
from basic_lite.rehearsal.disk import disk_of, free_bytes
from basic_lite.rehearsal.hours import ON_A_CPU, CardTimes, Work, hours_text, rests_on, show_cards
from basic_lite.rehearsal.outlook import elsewhere, product_dtype, seconds_on, work_of
from basic_lite.sizes import size_text
from basic_lite.tools.dry_run import tell_without_gpu
from basic_lite.tools.export.command import exported_from, no_room
from basic_lite.tools.runs import is_running
from basic_lite.training.assembly import doubts, preflight
from basic_lite.training.bundle import model_facts
from basic_lite.training.inputs import require_inputs
from basic_lite.training.lock import InUse
from basic_lite.training.places import MANIFEST, holds_bundle
from basic_lite.training.plan import Plan
from basic_lite.training.run_folder import RunFolder, require_same_data, try_writing
from basic_lite.training.stage import look_at_stage
from basic_lite.training.start import find_origin


@dataclass(frozen=True)
class StageOutlook:
    """What is known of a stage before it begins.

    Attributes:
        rehearsal: of a step with the longest sample that there is; None: the stage is finished, and nothing is left.
        work: what is left of it.
        seconds: how long that is likely to take on this machine's card; None: it has none.
        cards: the run on cards that aren't here; None: it is for this machine.
    """

    recipe: Recipe
    folder: RunFolder
    frontend: Frontend
    parts: list[Part]
    rehearsal: Rehearsal | None = None
    work: Work | None = None
    seconds: float | None = None
    cards: CardTimes | None = None
    disk_bytes: int = 0


def look_ahead(
    recipes: Sequence[Recipe], out: Path | None, *, dry_run: bool = False, console: Console | None = None
) -> bool | None:
    """Check everything that needs no weights, of all stages and the export, and show what they take.

    Args:
        out: the folder of the export; None: there is none.
        dry_run: nothing is started afterwards. A GPU that this machine lacks is a note then.

    Returns:
        None if there is still something to export; else whether the export that is there has passed its check.

    Raises:
        UserError: everything that would stop a stage, or the export, before it begins.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    say = speaker(console)
    looks: list[StageOutlook] = []
    refused: list[str] = []
    why: dict[str, list[str]] = {}
    for number, recipe in enumerate(recipes, 1):
        say(f"recipe {number} of {len(recipes)}: {recipe.name}")
        try:
            device = _device(recipe, say, dry_run=dry_run, tell=number == 1)
            # The projector of the stage before isn't there yet, as a rule.
            awaited = number > 1 and not holds_bundle(recipes[number - 2].run_path)
            looks.append(_look(recipe, looks[-1] if looks else None, device, say, awaited=awaited))
        except UserError as error:
            for one in each_of(error):
                why.setdefault(one, []).append(f"{number} ({recipe.name})")
    for one, which in why.items():
        refused.append(f"recipe{'s' * (len(which) > 1)} {' and '.join(which)} would be refused: {one}")
    done = None
    if out is not None:
        try:
            done = exported_from(out, looks[-1].folder.final / MANIFEST if len(looks) == len(recipes) else None)
            if done is None:
                new_place(out)
        except UserError as error:
            refused.append(f"--export: {error}")
    if len(looks) == len(recipes):
        _show(looks, out if done is None else None, console)
        if out is not None and done is None and (why_not := no_room(out, export_bytes(looks[-1]))):
            refused.append(f"--export: {why_not}")
    if refused:
        raise in_one(refused)
    if done is not None:
        say(f"{out} is the export of {looks[-1].folder.final} already")
    if dry_run:
        console.print("dry run: nothing was loaded, nothing was written", style="dim")
    return done


def _device(recipe: Recipe, say: Say, *, dry_run: bool, tell: bool) -> torch.device | None:
    """What the stage runs on; None: a card that this machine doesn't have."""
    if dry_run and recipe.training.device != "cpu" and not torch.cuda.is_available():
        tell_without_gpu(recipe, say)
        return None
    device = pick_device(recipe.training.device)
    if tell:
        tell_device(device, recipe.training.device, say)
    return device


def _look(
    recipe: Recipe, before: StageOutlook | None, device: torch.device | None, say: Say, *, awaited: bool
) -> StageOutlook:
    """The checks that training makes before it loads weights, in its order.

    Args:
        awaited: the projector that it begins with isn't there yet.
    """
    recipe, folder = look_at_stage(recipe, say)
    if is_running(folder.path):
        raise InUse(folder.path)
    if not folder.finished:
        require_inputs(recipe, earlier=folder.checkpoint is None and not awaited)
    frontend = load_frontend(recipe.model)
    if before is not None:
        _require_same_model(before, frontend)
    machine = Machine.card(recipe) if device is None else Machine.here(recipe, device)
    parts = planned_parts(recipe, frontend, machine.dtype)
    if folder.finished:
        return StageOutlook(recipe, folder, frontend, parts)
    try_writing(folder.path)
    origin = find_origin(recipe) if folder.checkpoint is None and not awaited else None
    _, data = preflight(recipe, device, say, origin=origin, broken=folder.broken)
    require_same_data(folder, data.fingerprints)
    for warning in doubts(recipe, data):
        say(f"warning: {warning}")
    earlier = folder.checkpoint.recipe if folder.checkpoint is not None else None
    if device is not None:
        recipe = settle_plan(recipe, frontend, data.report, device, say, earlier=earlier)
    elif recipe.training.plan == "auto":
        say(LATER)
    shape = Shape.longest(recipe, frontend, data.report)
    rehearser = Rehearser(recipe, frontend, machine)
    rehearsal = rehearser.rehearse(shape)
    if device is not None:
        _require_memory(recipe, frontend, rehearsal, device, say)
    work = work_of(recipe, frontend, data, parts, half=machine.autocast, done=folder.step)
    cards = elsewhere(rehearser, data.report, work) if device is None else None
    seconds = None
    if device is not None and device.type == "cuda":
        card = measured_card(device, product_dtype(recipe, device))
        seconds = seconds_on(recipe, frontend, data, work, machine, card)
    disk = disk_of(recipe, parts, work.steps + folder.step)
    return StageOutlook(recipe, folder, frontend, parts, rehearsal, work, seconds, cards, disk.most_bytes)


def _require_same_model(before: StageOutlook, frontend: Frontend) -> None:
    theirs, ours = model_facts(before.frontend.config), model_facts(frontend.config)
    wrong = [f"{key}: {theirs[key]} there, {ours[key]} here" for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise UserError(
            f"it takes the projector of {before.recipe.name}, which is made for another model ({'; '.join(wrong)}); "
            "give both recipes the same model.vision and model.llm"
        )


def _require_memory(recipe: Recipe, frontend: Frontend, found: Rehearsal, device: torch.device, say: Say) -> None:
    """Refuse a run that would run out of memory with a single sample; say so where it would only take fewer."""
    total, others = memory_of(device)
    room = total - others
    if found.least_bytes <= room:
        return
    single = changed_recipe(recipe, {"training.micro_batch": 1, "training.gradient_checkpointing": True})
    shape = Shape(1, found.shape.tokens, found.shape.images, recipe.training.global_batch)
    least = Rehearser(single, frontend, found.machine).rehearse(shape).least_bytes
    has = f"of {size_text(total)} of memory other programs leave {size_text(room)}"
    if least > room:
        raise UserError(
            f"a step with a single sample needs {size_text(least)} (rehearsed), and {has}; `basic-lite estimate` says "
            "what to change in the recipe"
        )
    say(
        f"note: a micro-batch of {found.shape.samples} needs {size_text(found.least_bytes)} (rehearsed), and {has}: "
        "the run will take a smaller one, or recompute more layers, with the same result"
    )


def export_bytes(look: StageOutlook) -> int:
    """Bytes of the exported weights, as `export` writes them by itself: the LLM's type, the projector in float32."""
    dtype = getattr(look.frontend.config.text_config, "dtype", None) or torch.float32
    sizes = {"projector": 4}
    return sum(p.parameters * sizes.get(p.part, dtype.itemsize) for p in look.parts if not p.part.startswith("LoRA"))


def _state(look: StageOutlook) -> str:
    if look.work is None:
        return "finished, and taken as it is"
    steps = f"{look.work.steps + look.folder.step:,}"
    state = f"goes on after step {look.folder.step:,} of {steps}" if look.folder.step else f"{steps} steps"
    if look.recipe.training.plan != "auto" or look.cards is not None:
        return state
    return f"{state}; {Plan.of(look.recipe, look.frontend.layer_count)}"


def _show(looks: Sequence[StageOutlook], out: Path | None, console: Console) -> None:
    """Memory, hours and disk of each stage, of the export, and of all."""
    say = speaker(console)
    left = [look for look in looks if look.work is not None]
    here = bool(left) and all(look.seconds is not None for look in left)
    cards = {look.recipe.name: look.cards for look in left if look.cards is not None}
    table = Sheet(("", "memory", "disk", *["time"] * here, ""), "what all of it takes")
    for look in looks:
        memory = size_text(look.rehearsal.needed_bytes) if look.rehearsal is not None else "-"
        hours = hours_text(look.seconds) if look.seconds is not None else "-"
        table.add(look.recipe.name, memory, size_text(look.disk_bytes), *[hours] * here, _state(look))
    disk_bytes = sum(look.disk_bytes for look in looks)
    if out is not None:
        size = export_bytes(looks[-1])
        disk_bytes += size
        table.add("export", size_text(size), size_text(size), *["-"] * here, f"{out}; its minutes aren't predicted")
    table.end_section()
    needed = [look.rehearsal.needed_bytes for look in left if look.rehearsal is not None]
    most = size_text(max(needed)) if needed else "-"
    hours = hours_text(sum(look.seconds or 0.0 for look in left))
    free = free_bytes(Path(looks[-1].recipe.output))
    total = (most, size_text(disk_bytes), *[hours] * here)
    table.add("all", *total, f"{size_text(free)} of disk are free", style="bold")
    show(console, table)
    if left:
        say("memory is rehearsed with the longest sample, disk is the most at once")
    if cards:
        show_cards(console, cards)
    elif left:
        say(
            f"the time is {rests_on(*(look.work for look in left if look.work is not None), measured=True)}"
            if here
            else ON_A_CPU
        )
    if disk_bytes > free:
        say(f"warning: all of it writes up to {size_text(disk_bytes)}, and {size_text(free)} are free: make room")
