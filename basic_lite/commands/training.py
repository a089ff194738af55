"""``train``, ``estimate`` and ``keys``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from basic_lite.commands.common import Overrides, RecipeName, note
from basic_lite.commands.spare import require_no_card
from basic_lite.errors import Interrupted, StoppedElsewhere, UserError
from basic_lite.outside import at_home

if TYPE_CHECKING:
    from basic_lite.recipe import Recipe

DRY_RUN = (
    "Check recipe, model configs and data, show the plan, and stop. The exit status is 2 if `train` would refuse to "
    "start, as before stage 1 has run; a GPU that this machine lacks is only a note."
)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    checkpoint: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEP", help="With --resume: from this step's checkpoint, not the newest."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the run in the folder, once this one has passed its checks. Predictions and what you have "
            "put into it or changed in its recipe are moved to its folder kept-1.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
) -> None:
    """Train one stage as a recipe says."""
    from basic_lite.recipe import find_recipe, load_recipe

    overrides = overrides or []
    if checkpoint is not None and not resume:
        raise UserError("--checkpoint chooses the checkpoint for --resume; add --resume")
    loaded = load_recipe(recipe, overrides)
    if not os.path.isfile(at_home(recipe)):
        note(f"using the shipped recipe {find_recipe(recipe)}")
    if dry_run:
        if resume:
            raise UserError("--dry-run starts nothing, so there is nothing to --resume; leave one of the two out")
        from basic_lite.training.inputs import look_at_inputs

        look_at_inputs(loaded, plan=True)
        from basic_lite.tools.dry_run import dry_run as show_plan

        show_plan(loaded, overwrite=overwrite)
        return
    said = None if checkpoint else _said_at_once(loaded, resume=resume, overwrite=overwrite)
    if said is not None:
        if _speaks():
            note(said)
        return
    from basic_lite.run import train as train_recipe
    from basic_lite.tools.report.page import write_report

    try:
        train_recipe(loaded, resume=resume, checkpoint=checkpoint, overwrite=overwrite, report=write_report)
    except (Interrupted, KeyboardInterrupt) as stopped:
        # A launcher's processes all come here, and the first one speaks.
        if _speaks():
            from basic_lite.console import command_line

            again = command_line([*_command(), "train", recipe, *overrides, "--resume"])
            note(_what_is_left(stopped, loaded.run_path, again))
        raise typer.Exit(130) from None


def _said_at_once(recipe: "Recipe", *, resume: bool, overwrite: bool) -> str | None:
    """What the run folder tells, before seconds of imports; refused is what is missing (``look_at_inputs``).

    A launcher's processes all look, and the first one speaks. On several machines the folder may be on one of them,
    and then the run itself looks.
    """
    from basic_lite.training.earlier_run import look_at_earlier_run, require_one_way

    count = os.environ.get("WORLD_SIZE", "1")
    if count != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return None
    try:
        require_one_way(resume=resume, overwrite=overwrite)
        said = None if overwrite else look_at_earlier_run(recipe, resume=resume)
        if not resume:
            from basic_lite.training.inputs import look_at_inputs

            look_at_inputs(recipe, plan=False)
        return said
    except UserError:
        if _speaks():
            raise
        raise StoppedElsewhere("process 0 reports it") from None


def _speaks() -> bool:
    """Whether this process speaks: of a launcher's, the first one."""
    return os.environ.get("RANK", "0") == "0"


def _what_is_left(stopped: BaseException, run: Path, again: str) -> str:
    """What a run that was stopped has left, and the command that goes on."""
    from basic_lite.training.places import checkpoints_of, is_finished

    if isinstance(stopped, Interrupted):
        return f"{stopped}; continue with: {again}" if stopped.checkpoint else str(stopped)
    if is_finished(run):
        return f"stopped; the finished run in {run} is as it was"
    if checkpoints := checkpoints_of(run):
        return f"stopped; the newest that is saved is {checkpoints[-1]}; continue with: {again}"
    return f"stopped; no checkpoint was saved in {run}, and the same command starts again"


def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="MEMORY|CARD",
            help="Memory of the card in GiB (24, 24GB, 24564MiB), best what nvidia-smi shows free; or its name "
            "(rtx4090). Default: 24; for the CPU, this machine's.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run two real steps on this machine's GPU and compare.")
    ] = False,
) -> None:
    """Say what memory and time a recipe needs on a card.

    Says whether the card has that much memory, and which plans are faster.

    Rehearses the training step from the models' configurations alone, without a GPU. For 7B that takes half a
    minute of a processor's time, on a busy machine longer.
    The exit status is 0 whether it fits or not.
    """
    from basic_lite.asked_card import asked_card
    from basic_lite.recipe import load_recipe

    require_no_card(recipe, overrides or [])
    card = None if gpu is None else asked_card(gpu)
    loaded = load_recipe(recipe, overrides or [])
    from basic_lite.tools.estimate import estimate as rehearse_and_show

    rehearse_and_show(loaded, gpu=card, measure=measure)


def keys(
    prefix: Annotated[str, typer.Argument(help="Only this key or section, as in `training`.", show_default=False)] = "",
) -> None:
    """List every recipe key: type, default, what it does."""
    from rich.console import Console

    from basic_lite.console import show_entry
    from basic_lite.recipe import describe_keys, nearest_key

    console = Console(highlight=False)
    rows = describe_keys(prefix)
    if not rows:
        nearest = nearest_key(tuple(prefix.split(".")))
        hint = f"did you mean {nearest!r}?" if nearest else "`basic-lite keys` lists them all"
        raise UserError(f"there is no recipe key or section {prefix!r}; {hint}")
    for row in rows:
        default = row.default if row.default == "required" else f"default {row.default}"
        show_entry(console, f"{row.name}  ({row.type}; {default})", row.doc)


def _command() -> list[str]:
    """How this program was started: alone, or by a launcher in several processes."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return ["basic-lite"]
    return ["accelerate", "launch", "--multi_gpu", "--num_processes", count, "-m", "basic_lite"]
