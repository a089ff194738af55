"""One run, from a recipe to a bundle. Read this page first: each stage of ``train`` is one paragraph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from basic_lite.console import Say, quiet_libraries, speaker
from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.errors import Interrupted
from basic_lite.model.adapt import adapt
from basic_lite.model.audit import audit, check_parts, render
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import Loaded, load_base, pick_device, pick_dtype
from basic_lite.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.supervision.supervision import choose_kernels
from basic_lite.supervision.target import supervised_layers
from basic_lite.train.arguments import check_trackers, steps_of, training_arguments, use_autocast
from basic_lite.train.bundle import open_bundle, restore_projector, save_bundle
from basic_lite.train.callbacks import GradientCheck, Interruption, JsonLog, tensorboard
from basic_lite.train.progress import ProgressLine
from basic_lite.train.refinement import SAMPLES_PER_BATCH, RefinementLog
from basic_lite.train.run_folder import RunFolder, open_run_folder, write_json
from basic_lite.train.trainer import BasicTrainer


@dataclass(frozen=True)
class RunResult:
    """What a finished run left: its folder, the final bundle, and the log lines of its steps."""

    folder: Path
    bundle: Path
    steps: int
    history: list[dict[str, Any]]


def train(recipe: Recipe, *, resume: bool = False, console: Console | None = None) -> RunResult:
    """Run one stage.

    Raises:
        UserError: anything the user can mend, before step 0 wherever that is possible.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    console = console or Console(stderr=True, highlight=False)
    say = speaker(console)
    quiet_libraries()

    # The run folder first: nothing is loaded for a run that can't be written.
    folder = open_run_folder(recipe, resume=resume)
    if folder.finished:
        say(f"{folder.path} is finished; its bundle is {folder.final}")
        return RunResult(folder.path, folder.final, open_bundle(folder.final).step, [])
    if resume and folder.checkpoint is None:
        say(f"--resume: {folder.path} has no checkpoint yet; the run starts from the beginning")

    # Data next, with tokenizer and image processor but without weights: bad records show in seconds.
    device = pick_device(recipe.training.device)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    transformers.set_seed(recipe.seed)
    frontend = load_frontend(recipe.model)
    check_supervision(recipe, frontend)
    check_trackers(recipe)
    data = prepare_data(recipe, frontend, say=say)

    # The model: LLM in NF4, projector in float32, LoRA; then looked at, part by part, and refused if it isn't so.
    loaded = load_for_training(recipe, device, frontend, say)
    table = audit(loaded.parts)
    console.print(render(table))
    check_parts(table, recipe, pick_dtype(recipe.model.dtype, device))

    # BASIC's taps, and the trainer around them.
    folder.begin(recipe)
    write_json(folder.path / "parts.json", [part.to_dict() for part in table])
    write_json(folder.path / "data.json", data.summary())
    supervision = supervise(recipe, loaded, say)
    trainer = build_trainer(recipe, loaded, data, supervision, folder, console)

    # Training. Ctrl-C finishes the step, saves and stops.
    interruption, progress = trainer.interruption, trainer.progress
    with interruption:
        try:
            trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
        finally:
            progress.close()
    state = trainer.state
    if interruption.requested and state.global_step < state.max_steps:
        raise Interrupted(folder.path / f"checkpoint-{state.global_step}")

    # The final bundle: adapter, projector, tokenizer, recipe, hashes.
    if trainer.is_world_process_zero():
        save_bundle(
            folder.final,
            loaded.parts,
            loaded.tokenizer,
            recipe,
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch or 0.0,
        )
    say(f"{recipe.name}: {state.global_step} steps; the trained model is {folder.final}")
    return RunResult(folder.path, folder.final, state.global_step, state.log_history)


def load_for_training(recipe: Recipe, device: torch.device, frontend: Frontend, say: Say) -> Loaded:
    """Base weights, an earlier stage's projector where the recipe names one, LoRA, and what trains."""
    before = open_bundle(Path(recipe.model.projector), "model.projector") if recipe.model.projector else None
    loaded = load_base(recipe, device, frontend)
    if before is not None:
        restore_projector(before, loaded.parts.projector)
        say(f"projector from {before.folder} (stage {before.manifest['stage']}, step {before.step})")
    adapt(loaded.parts, recipe)
    return loaded


def basic_is_on(recipe: Recipe) -> bool:
    """Whether this recipe's stage computes BASIC's losses."""
    return recipe.supervision.enabled and recipe.stage in recipe.supervision.stages


def check_supervision(recipe: Recipe, frontend: Frontend) -> None:
    """Refuse an impossible number of supervised layers, or kernels that aren't there, before weights are loaded."""
    if basic_is_on(recipe):
        choose_kernels(recipe.kernels)
        supervised_layers(recipe.supervision.layers, frontend.layer_count)


def supervise(recipe: Recipe, loaded: Loaded, say: Say) -> Supervision | None:
    """BASIC on this model, or None where the recipe has it off."""
    if not basic_is_on(recipe):
        say("BASIC is off: " + ("supervision.enabled" if not recipe.supervision.enabled else "supervision.stages"))
        return None
    supervision = Supervision(
        loaded.parts,
        recipe.supervision,
        vocabulary_ids=loaded.vocabulary_ids,
        kernels=recipe.kernels,
        special_ids=torch.tensor(sorted(set(loaded.tokenizer.all_special_ids))),
    )
    settings = recipe.supervision
    say(
        f"BASIC: v̂ from layers 1..{supervision.layers} of {len(loaded.parts.layers)} ({settings.layer_weights}), "
        f"λ1 {settings.lambda_das:g} ({settings.direction}), λ2 {settings.lambda_sds:g}, kernels: {supervision.kernels}"
    )
    return supervision


def build_trainer(
    recipe: Recipe,
    loaded: Loaded,
    data: Prepared,
    supervision: Supervision | None,
    folder: RunFolder,
    console: Console,
) -> BasicTrainer:
    """The trainer with its callbacks; shared by ``train`` and the tests."""
    device = pick_device(recipe.training.device)
    log = JsonLog(folder.log)
    if folder.checkpoint is not None:
        log.keep_until(open_bundle(folder.checkpoint).step)
    checks = GradientCheck(loaded.parts)
    trainer = BasicTrainer(
        loaded=loaded,
        recipe=recipe,
        supervision=supervision,
        sampler=data.sampler,
        args=training_arguments(recipe, folder.path, device, steps=steps_of(recipe, len(data.train))),
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
        callbacks=[checks, log],
    )
    checks.trainer = trainer
    if supervision is not None and supervision.active:
        batches = data.batches_with_images(recipe.supervision.refinement_batches, SAMPLES_PER_BATCH)
        if batches:
            trainer.add_callback(
                RefinementLog(
                    supervision, batches, loaded.tokenizer, log, speaker(console), autocast=use_autocast(recipe, device)
                )
            )
    if "tensorboard" in recipe.training.trackers:
        trainer.add_callback(tensorboard(folder.path / "tensorboard"))
    trainer.progress = ProgressLine(console, recipe.name)
    trainer.interruption = Interruption(speaker(console))
    trainer.add_callback(trainer.progress)
    trainer.add_callback(trainer.interruption)
    return trainer
