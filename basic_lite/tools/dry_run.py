"""``basic-lite train RECIPE --dry-run``: all of a run that needs neither weights nor a GPU."""

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from basic_lite.console import Say, Sheet, quiet_libraries, show, shows_colours, speaker
from basic_lite.data.check import DataReport
from basic_lite.data.pixel_table import on_device
from basic_lite.data.prepare import Prepared
from basic_lite.errors import UserError, in_one
from basic_lite.model.audit import Part, planned_parts, render
from basic_lite.model.device import tell_device
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import pick_device, pick_dtype
from basic_lite.recipe.presets import MEASURED
from basic_lite.recipe.rules import accumulation
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.choice import LATER, settle_plan
from basic_lite.rehearsal.cost import basic_share, mean_sizes, products
from basic_lite.rehearsal.hours import show_cards
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.outlook import disk_outlook, elsewhere, outlook, work_of
from basic_lite.rehearsal.step import Rehearser
from basic_lite.sizes import size_text
from basic_lite.supervision.target import supervised_layers
from basic_lite.tools.runs import row_of
from basic_lite.tools.sample import IMAGE, SUPERVISED, UNSUPERVISED, render_sample
from basic_lite.training.assembly import check_machine, doubts, preflight
from basic_lite.training.basic_text import basic_text, why_off
from basic_lite.training.batches import Schedule
from basic_lite.training.bundle import require_same_model
from basic_lite.training.inputs import require_inputs_of_plan, with_start
from basic_lite.training.own_files import not_the_runs_own
from basic_lite.training.places import is_run
from basic_lite.training.run_folder import kept_place, look_at_run_folder, try_writing
from basic_lite.training.start import Origin, find_origin


def dry_run(recipe: Recipe, console: Console | None = None, *, overwrite: bool = False) -> None:
    """Check the recipe, read configurations and data, print what the run would be and one sample of it.

    What only stands in the way for now, such as a stage 1 that hasn't run, is raised after the plan is shown. A GPU
    that this machine lacks is a note: the run may be for another machine.

    Args:
        overwrite: the run would replace the one in its folder.

    Raises:
        UserError: whatever would stop the run before its weights are loaded.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    say = speaker(console)
    recipe = with_start(recipe, say)
    require_inputs_of_plan(recipe)
    if overwrite and (replaced := _replaced(recipe.run_path)):
        say(replaced)
    origin, refused = _refusals(recipe, overwrite)  # the plan is worth seeing all the same
    device = pick_device("cpu") if recipe.training.device == "cpu" else None
    here = device or (pick_device("cuda") if torch.cuda.is_available() else None)
    if here is not None:
        tell_device(here, recipe.training.device, say)
    else:
        tell_without_gpu(recipe, say)
    frontend, data = preflight(recipe, device, say, origin=origin)
    if here is not None:
        recipe = settle_plan(recipe, frontend, data.report, here, say)
    elif recipe.training.plan == "auto":
        say(LATER)
    # The type on the card the recipe is for: without a GPU here, `auto` would otherwise show float32.
    dtype = torch.bfloat16 if recipe.model.dtype == "auto" and recipe.training.device != "cpu" else None
    parts = planned_parts(recipe, frontend, dtype or pick_dtype(recipe.model.dtype, torch.device("cpu")))
    show(console, render(parts), _facts(recipe, frontend, data, parts))
    say(basic_text(recipe, data))
    _show_cost(recipe, frontend, data, parts, here, console)
    _show_sample(recipe, frontend, data, console)
    for warning in doubts(recipe, data):
        say(f"warning: {warning}")
    console.print("dry run: nothing was loaded, nothing was written", style="dim")
    if refused:
        raise in_one(f"`train` would refuse to start: {refusal}" for refusal in refused)


def tell_without_gpu(recipe: Recipe, say: Say) -> None:
    """Say what makes a run impossible on this machine, which has no GPU."""
    try:
        if recipe.training.device != "auto":
            pick_device(recipe.training.device)
        check_machine(recipe, torch.device("cpu"))
    except UserError as error:
        say(f"note: this machine has no GPU; on it the run would be refused: {error}")


def _replaced(run: Path) -> str | None:
    """What ``--overwrite`` would do to the run that is there."""
    if not is_run(run):
        return None
    names = ", ".join(path.relative_to(run).as_posix() for path in not_the_runs_own(run))
    kept = f"; what isn't the run's own would be moved to {kept_place(run)}: {names}" if names else ""
    return f"note: --overwrite would replace the run in {run} ({row_of(run).state}){kept}"


def _refusals(recipe: Recipe, overwrite: bool) -> tuple[Origin | None, list[str]]:
    """What would stop `train` now but may be as it should: a folder in use, a stage 1 that hasn't run yet.

    Beside it the earlier run, where it is there and fits.
    """
    found, origin = [], None
    try:
        look_at_run_folder(recipe, resume=False, overwrite=overwrite)
        try_writing(recipe.run_path)
    except UserError as error:
        found.append(str(error))
    try:
        earlier = find_origin(recipe)
        if earlier is not None:
            require_same_model(earlier.bundle, load_frontend(recipe.model).config, earlier.key)
            origin = earlier
    except UserError as error:
        found.append(str(error))
    return origin, found


def _facts(recipe: Recipe, frontend: Frontend, data: Prepared, parts: list[Part]) -> Sheet:
    report, training = data.report, recipe.training
    schedule = Schedule(data.sampler, recipe)
    steps, samples = schedule.steps, schedule.samples_after(schedule.steps)
    per_sample = float(report.lengths.mean())
    rows = {
        "trainable parameters": f"{sum(p.trainable for p in parts):,} of {sum(p.parameters for p in parts):,}",
        "steps": f"{steps:,} of {training.global_batch} samples ({training.micro_batch} × "
        f"{accumulation(recipe)} accumulated), "
        f"{schedule.epochs_after(steps):.2f} epochs of {len(data.train):,} samples",
        "tokens": f"about {samples * per_sample:,.0f} ({per_sample:,.0f} a sample, "
        f"longest {int(report.lengths.max()):,}, limit {recipe.data.max_length:,})",
        "tokens an image": f"{frontend.tokens_per_image}",
        "learning rates": f"projector {training.projector_learning_rate:g}"
        + (f", LoRA {training.learning_rate:g}" if recipe.lora.enabled else ""),
    }
    rows["BASIC adds"] = _basic_adds(recipe, frontend, report, parts)
    table = Sheet(("", ""))
    for name, value in rows.items():
        table.add(name, value)
    return table


def _basic_adds(recipe: Recipe, frontend: Frontend, report: DataReport, parts: list[Part]) -> str:
    """What BASIC adds to a micro-batch of mean samples with images, from shapes."""
    settings = recipe.supervision
    if why_off(recipe):
        return "nothing"
    sizes = mean_sizes(recipe, frontend, parts, report, with_image=True)
    k = supervised_layers(settings.layers, frontend.layer_count)
    layers = "measured layers" if settings.layers == MEASURED else f"layers 1..{k} of {frontend.layer_count}"
    once = "once it is on: " if settings.gate else ""
    visual = round(sizes.visual) * recipe.training.micro_batch
    return (
        f"{once}v̂ from {layers}; "
        f"λ1 {settings.lambda_das:g} ({settings.direction}), λ2 {settings.lambda_sds:g}; "
        f"{basic_share(products(sizes)):.1%} more operations a step and {size_text(8 * visual * sizes.D)} of "
        f"buffers for {visual:,} visual tokens (from shapes)"
    )


def _show_cost(
    recipe: Recipe, frontend: Frontend, data: Prepared, parts: list[Part], device: torch.device | None, console: Console
) -> None:
    """Time, energy and disk: on this machine if the run is for it, else on cards that people have."""
    say = speaker(console)
    if device is not None:
        for line in outlook(recipe, frontend, data, parts, device):
            say(line)
        return
    machine = Machine.card(recipe)
    work = work_of(recipe, frontend, data, parts, half=machine.autocast)
    cards = elsewhere(Rehearser(recipe, frontend, machine), data.report, work)
    show_cards(console, {recipe.name: cards})
    for line in disk_outlook(recipe, parts, work.steps):
        say(line)


def _show_sample(recipe: Recipe, frontend: Frontend, data: Prepared, console: Console) -> None:
    """The first sample that has an image, or the first."""
    with_image = data.report.has_image.nonzero()[0]
    index = int(with_image[0]) if len(with_image) else 0
    record = data.train.record(index)
    encoded = data.train.chat.encode(record, recipe.data.max_length)
    batch = on_device(data.collator([data.train[index]]), torch.device("cpu"))
    shape = tuple(batch["pixel_values"].shape) if "pixel_values" in batch else None
    console.print()
    pictures = f"images {shape}" if shape else "no image"
    head = Text(f"one sample as the model gets it ({record.place}; {len(encoded.input_ids)} tokens, {pictures})")
    if shows_colours(console):
        head.append(": ").append("supervised", SUPERVISED).append(", ").append("not supervised", UNSUPERVISED)
        head.append(", ").append("image", IMAGE)
    console.print(head)
    console.print(render_sample(encoded, frontend.tokenizer, frontend.image_token_id))
    console.print()
