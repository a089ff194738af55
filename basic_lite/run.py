"""One run, from a recipe to a bundle. Read this page first: each stage of ``train`` is one paragraph."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from basic_lite.console import Say, quiet_libraries, speaker
from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.errors import Interrupted, UserError
from basic_lite.model.adapt import adapt
from basic_lite.model.audit import audit, check_parts, render
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import Loaded, load_base, pick_device, pick_dtype
from basic_lite.model.offload import offload
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.supervision.supervision import choose_kernels
from basic_lite.supervision.target import supervised_layers
from basic_lite.train.arguments import check_arguments, steps_of, training_arguments, use_autocast
from basic_lite.train.bundle import open_bundle, save_bundle
from basic_lite.train.callbacks import GradientCheck, Interruption, JsonLog, tensorboard
from basic_lite.train.memory import told_when_out_of_memory
from basic_lite.train.progress import ProgressLine
from basic_lite.train.refinement import SAMPLES_PER_BATCH, RefinementLog
from basic_lite.train.restore import require_same_model, restore_projector
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
    # One process speaks and writes, the others of a launcher work.
    console = console or Console(stderr=True, highlight=False, quiet=not is_main_process())
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
    frontend, data = preflight(recipe, device, say)

    # The model: LLM in NF4, projector in float32, LoRA; then looked at, part by part, and refused if it isn't so.
    with told_when_out_of_memory(recipe, device, "while the model was loaded"):
        loaded = load_for_training(recipe, device, frontend, say)
    table = audit(loaded.parts)
    console.print(render(table))
    check_parts(table, recipe, pick_dtype(recipe.model.dtype, device))

    # BASIC's taps, and the trainer around them.
    if is_main_process():
        folder.begin(recipe)
        write_json(folder.path / "parts.json", [part.to_dict() for part in table])
        write_json(folder.path / "data.json", data.summary())
    supervision = supervise(recipe, loaded, say)
    trainer = build_trainer(recipe, loaded, data, supervision, folder, console)

    if folder.checkpoint is not None:
        say(f"going on from {folder.checkpoint} (step {open_bundle(folder.checkpoint).step})")

    # Training. Ctrl-C finishes the step, saves and stops. A step without memory is the trainer's to mend.
    interruption, progress = trainer.interruption, trainer.progress
    elsewhere = "outside a step's forward and backward: reading data, the optimizer, or saving"
    with interruption, told_when_out_of_memory(recipe, device, elsewhere):
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
            samples=trainer.samples_seen(),
        )
    say(f"{recipe.name}: {state.global_step} steps; the trained model is {folder.final}")
    return RunResult(folder.path, folder.final, state.global_step, state.log_history)


def preflight(recipe: Recipe, device: torch.device | None, say: Say) -> tuple[Frontend, Prepared]:
    """All that can be found wrong without weights; ``device`` None: of a machine that isn't this one (dry run).

    Raises:
        UserError: models, data or settings that can't make a run.
    """
    check_arguments(recipe, device)
    frontend = load_frontend(recipe.model)
    if basic_is_on(recipe):
        choose_kernels(recipe.kernels)
        supervised_layers(recipe.supervision.layers, frontend.layer_count)
    if recipe.model.projector is not None:
        earlier = open_bundle(Path(recipe.model.projector), "model.projector")
        require_same_model(earlier, frontend.config, "model.projector")
    data = prepare_data(recipe, frontend, say=say)
    if not data.report.has_image.any():
        raise UserError(
            "no record of data.train has an image, so the projector would learn nothing; add records with images (a "
            "text-only "
            "LLM is better trained elsewhere)"
        )
    return frontend, data


def load_for_training(recipe: Recipe, device: torch.device, frontend: Frontend, say: Say) -> Loaded:
    """Base weights, an earlier stage's projector where the recipe names one, LoRA, what trains, what is offloaded."""
    loaded = load_base(recipe, device, frontend)
    if recipe.model.projector is not None:
        earlier = open_bundle(Path(recipe.model.projector), "model.projector")
        restore_projector(earlier, loaded.parts)
        say(f"projector from {earlier.folder} (stage {earlier.manifest['stage']}, step {earlier.step})")
        names = {k: v for k, v in earlier.manifest["models"].items() if v != getattr(recipe.model, k)}
        if names:
            say(f"note: it was trained with {names}; this recipe names other models of the same kind and size")
    adapt(loaded.parts, recipe)
    offload(loaded.parts, recipe, device)
    return loaded


def is_main_process() -> bool:
    """False in all but one of the processes that a launcher such as accelerate's starts."""
    return os.environ.get("RANK", "0") == "0"


def basic_is_on(recipe: Recipe) -> bool:
    """Whether this recipe's stage computes BASIC's losses."""
    return recipe.supervision.enabled and recipe.stage in recipe.supervision.stages


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
    if folder.checkpoint is not None and is_main_process():
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
        say=speaker(console),
        log=log,
    )
    checks.trainer = trainer
    if supervision is not None and supervision.active:
        batches = data.batches_with_images(recipe.supervision.refinement_batches, SAMPLES_PER_BATCH)
        if batches:
            trainer.add_callback(
                RefinementLog(
                    supervision,
                    batches,
                    loaded.tokenizer,
                    log,
                    speaker(console),
                    autocast=use_autocast(recipe, device),
                    fresh=recipe.model.projector is None and recipe.model.base is None,
                )
            )
    if "tensorboard" in recipe.training.trackers and is_main_process():
        trainer.add_callback(tensorboard(folder.path / "tensorboard"))
    trainer.micro_batch = log.last_micro_batch(recipe.training.micro_batch)
    if trainer.micro_batch < recipe.training.micro_batch:
        speaker(console)(f"the run ran out of memory before: it goes on with a micro-batch of {trainer.micro_batch}")
    trainer.progress = ProgressLine(console, recipe.name)
    trainer.interruption = Interruption(speaker(console))
    trainer.add_callback(trainer.progress)
    trainer.add_callback(trainer.interruption)
    return trainer
