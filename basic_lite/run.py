"""One run, from a recipe to a bundle. Read this page first: each stage of ``train`` is one paragraph."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from basic_lite.console import Say, counting, quiet_libraries, show, speaker
from basic_lite.data.names import EVAL
from basic_lite.data.prepare import Prepared
from basic_lite.errors import OutOfMemory, UserError
from basic_lite.model.audit import audit, check_parts, render, render_fusions
from basic_lite.model.device import tell_device, warn_of_slow_types
from basic_lite.model.load import pick_dtype
from basic_lite.recipe import Recipe
from basic_lite.rehearsal.advice import memory_advice
from basic_lite.rehearsal.choice import plan_of_run
from basic_lite.rehearsal.outlook import outlook
from basic_lite.supervision.supervision import kernels_refused
from basic_lite.training.assembly import doubts, load_for_training, preflight, software_of, supervise, uses_autocast
from basic_lite.training.breakdown import Breakdown, Clock
from basic_lite.training.bundle_files import open_bundle
from basic_lite.training.earlier_run import finished_text
from basic_lite.training.files import remove, saving
from basic_lite.training.inputs import with_start
from basic_lite.training.lock import locked
from basic_lite.training.log import trackers_of
from basic_lite.training.loop import Loop
from basic_lite.training.made import Run
from basic_lite.training.maps import ReportMaps
from basic_lite.training.places import is_run
from basic_lite.training.processes import Processes, connect, take_device
from basic_lite.training.projector_start import match_projector
from basic_lite.training.recovery import memory_needed
from basic_lite.training.run_folder import (
    RunFolder,
    look_at_run_folder,
    missing_folders,
    remove_empty,
    require_same_data,
    require_writable,
)
from basic_lite.training.stage import changes, look_at_stage
from basic_lite.training.start import open_inputs
from basic_lite.training.trained_on import TrainedOn, compare, read_record, record_at_start
from basic_lite_kernels.operations import KernelUnavailable


@dataclass(frozen=True)
class RunResult:
    """What a finished run left: its folder, the final bundle, and the log lines of its steps."""

    folder: Path
    bundle: Path
    steps: int
    history: list[dict[str, Any]] = field(repr=False)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    checkpoint: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    report: Callable[[Path], object] | None = None,
) -> RunResult:
    """Run one stage.

    Args:
        resume: continue the run in the recipe's folder.
        checkpoint: with ``resume``: the step of the checkpoint to start from; None: the newest.
        overwrite: replace the run in the recipe's folder, once this one has passed its checks. Not with ``resume``.
        report: writes a page on the run whose folder it gets; called after each evaluation and at the end.

    Raises:
        UserError: anything the user can fix, before step 0 wherever that is possible.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    # The processes of a launcher come first: each has its own device, and one of them speaks and writes.
    device = take_device(recipe)
    processes = connect(recipe, device, bf16=uses_autocast(recipe, device), trackers=trackers_of(recipe))
    console = console or Console(stderr=True, highlight=False, quiet=not processes.is_main)
    say = speaker(console)
    _introduce(recipe, device, processes, say)

    # A recipe that goes on from another run (model.start) gets its models' names from there.
    with processes.together():
        recipe = with_start(recipe, say, resume=resume)

    with ExitStack() as stack, _explained(recipe, device):
        # The run folder: nothing is loaded for a run that can't be written.
        folder = _open_folder(recipe, processes, stack, say, resume=resume, step=checkpoint, overwrite=overwrite)
        if folder.finished:
            say(finished_text(folder.path))
            return RunResult(folder.path, folder.final, open_bundle(folder.final).step, [])

        # Data next, with tokenizer and image processor but without weights: bad records show in seconds.
        _settle(recipe)
        with processes.together():
            origin = open_inputs(recipe, earlier=folder.checkpoint is None)  # a checkpoint has all weights
            frontend, data = preflight(
                recipe, device, say, origin=origin, shown=processes.is_main, broken=folder.broken
            )
            require_same_data(folder, data.fingerprints)
            _say_each((f"warning: {one}" for one in doubts(recipe, data, resumed=folder.step > 0)), say)
        recipe, falls = plan_of_run(recipe, frontend, data.report, folder, processes, device, say)
        started_from = origin.record() if origin is not None else folder.started_from

        # What it trains on is written down, so that none of it is called new later.
        with processes.together():
            trained, data = _write_down(folder, recipe, data, started_from, processes, console)

        # The model: LLM in NF4, projector in float32, LoRA; then looked at, part by part, and refused if it isn't so.
        with processes.together(), memory_needed("while the model was loaded"):
            loaded = load_for_training(recipe, device, frontend, say, origin=origin)
            match_projector(recipe, loaded, data, device, say, resumed=folder.checkpoint is not None)
            table = audit(loaded.parts)
            show(console, render(table), *render_fusions(loaded.parts.language_model))
            check_parts(table, recipe, pick_dtype(recipe.model.dtype, device))

        # What the run will take, before it takes it.
        if processes.is_main:
            _say_each(outlook(recipe, frontend, data, table, device, done=folder.step, processes=processes.count), say)

        # BASIC's taps, and the loop around them.
        with processes.together():
            breakdown = Breakdown(Clock(device, time.perf_counter))
            supervision = supervise(recipe, loaded, say, breakdown.operations)
            parts = recipe, loaded, data, supervision, breakdown
            page = partial(_write_page, report if processes.is_main else None, ReportMaps(*parts[:4], folder.path, say))
            loop = Loop(Run(*parts, folder, started_from, processes, device, console, falls, page))

        # Nothing is left to refuse: the folder becomes this run's, and what it replaces goes.
        with processes.together(), saving(folder.path, "Make room, or change output"):
            if processes.is_main:
                _say_each(folder.begin(recipe, table, data.summary(), trained, software_of(device)), say)
        return RunResult(folder.path, folder.final, loop.schedule.steps, loop.train())


def _write_page(report: Callable[[Path], object] | None, maps: ReportMaps) -> None:
    """Write a page on the run, with the token maps that it shows. No error of it may end a run of hours."""
    if report is None:
        return
    for what, write in (("token maps", maps.write), ("report", partial(report, maps.folder))):
        try:
            write()
        except UserError as error:
            maps.say(f"warning: no {what}: {error}")
        except Exception as error:
            maps.say(f"warning: no {what}, through a fault of basic-lite's own ({type(error).__name__}: {error})")


def _say_each(lines: Iterable[str], say: Say) -> None:
    for line in lines:
        say(line)


def run_stage(
    recipe: Recipe,
    *,
    replace: bool = False,
    console: Console | None = None,
    report: Callable[[Path], object] | None = None,
) -> bool:
    """Start a stage, go on with it, or take it as it is when it is finished. True when it was finished already.

    Args:
        replace: a run in its folder that was made with other settings goes.
        report: as in ``train``.

    Raises:
        UserError: as ``train``; and without ``replace`` the folder holds another run.
    """
    if replace and changes(recipe):
        with locked(recipe.run_path):
            pass  # no other process trains there
        remove(recipe.run_path)
    _, folder = look_at_stage(recipe, lambda text: None)
    clear_device_cache(garbage_collection=True)  # what an earlier stage has left
    train(recipe, resume=is_run(folder.path), console=console, report=report)
    return folder.finished


def _write_down(
    folder: RunFolder,
    recipe: Recipe,
    data: Prepared,
    started_from: dict[str, Any] | None,
    processes: Processes,
    console: Console,
) -> tuple[TrainedOn, Prepared]:
    """What the run is trained on, and its data with how much of what evaluates it is among that, which is said.

    One process looks, the one that writes it; the others have nothing of it.
    """
    if not processes.is_main:
        return TrainedOn(), data
    kept = read_record(folder.path) if folder.checkpoint is not None else None
    trained = kept or record_at_start(data.train, started_from, partial(counting, console, "pictures read"))
    if data.eval is None:
        return trained, data
    found = compare(trained, (data.eval.record(index) for index in range(len(data.eval))))
    for line in found.notes_at_start("data.held_out" if recipe.data.held_out is not None else EVAL):
        speaker(console)(line)
    return trained, replace(data, known_before=found.summary())


def _settle(recipe: Recipe) -> None:
    """Set what the whole process computes with."""
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    set_seed(recipe.seed)


def _introduce(recipe: Recipe, device: torch.device, processes: Processes, say: Say) -> None:
    """Say what the run is computed on; from here on libraries are quiet."""
    if processes.is_main:
        dtype, autocast = pick_dtype(recipe.model.dtype, device), uses_autocast(recipe, device)
        tell_device(device, recipe.training.device, say, dtype=dtype, autocast=autocast)
        warn_of_slow_types(device, _types(recipe, device), say)
    if processes.count > 1:
        say(f"{processes.count} processes share each step's micro-batches")
    quiet_libraries()


def _types(recipe: Recipe, device: torch.device) -> dict[str, torch.dtype]:
    """What the recipe computes in, by the override that puts float32 in its place."""
    types = {"model.dtype=float32": pick_dtype(recipe.model.dtype, device)}
    if recipe.quantization.mode != "none" and recipe.quantization.compute_dtype != "auto":
        types["quantization.compute_dtype=float32"] = pick_dtype(recipe.quantization.compute_dtype, device)
    if uses_autocast(recipe, device):
        types["training.autocast=off"] = torch.bfloat16
    return types


def _open_folder(recipe: Recipe, processes: Processes, stack: ExitStack, say: Say, **how: Any) -> RunFolder:
    """Open the run folder. The main process makes it, checks it, and locks it until ``stack`` closes."""
    folder = None
    with processes.together():
        if processes.is_main:
            look_at_run_folder(recipe, **how)
            path = recipe.run_path
            new = missing_folders(path)
            require_writable(path)
            stack.callback(remove_empty, new or [path])  # a start that was refused leaves nothing
            stack.enter_context(locked(path))
            folder = look_at_run_folder(recipe, **how)  # it may have changed until locked
    folder = processes.from_main(folder)
    if how["resume"] and folder.checkpoint is None and not folder.finished:
        say(f"--resume: {folder.path} has no checkpoint yet; the run starts from the beginning")
    return folder


@contextmanager
def _explained(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Training reports that memory ran out. A rehearsal adds what the run needs and what would reduce it."""
    try:
        yield
        return
    except KernelUnavailable as error:
        raise UserError(kernels_refused(error)) from error
    except OutOfMemory as error:
        found = str(error)
    # Here the exception is gone, and with it the frames that held the run's tensors.
    raise UserError("\n".join([found, *memory_advice(recipe, device)]))
