"""The parts of a run, made from a recipe: what is checked first, the model, BASIC, the step."""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate.utils import AutocastKwargs
from transformers import get_scheduler

from basic_lite.console import Say
from basic_lite.data.names import EVAL, TRAIN
from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.data.unknown_words import unknown_words
from basic_lite.errors import UserError
from basic_lite.model.adapt import adapt
from basic_lite.model.device import has_bfloat16
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.liger import fuse
from basic_lite.model.liger_kernels import choose_liger
from basic_lite.model.load import Loaded, load_base, pick_dtype
from basic_lite.model.offload import offload
from basic_lite.recipe.presets import MEASURED, differences
from basic_lite.recipe.rules import check_without_gpu, recomputed_layers
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.scoring.questions import most_tokens
from basic_lite.supervision import Supervision, choose_kernels
from basic_lite.supervision.attention_trial import try_attention
from basic_lite.supervision.target import supervised_layers
from basic_lite.training.batches import Schedule
from basic_lite.training.bundle import require_same_model
from basic_lite.training.held_out_score import Sample
from basic_lite.training.optimizer import make_optimizer
from basic_lite.training.processes import ALONE, Processes
from basic_lite.training.sanity import sanity_warnings
from basic_lite.training.software import versions_of
from basic_lite.training.start import Origin, notes_on
from basic_lite.training.step import Autocast, Mark, TrainStep
from basic_lite_kernels.operations import Operations

# It makes all float32 products TF32, whatever a program asks for.
_TF32, _OFF = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", ("", "0", "FALSE", "N", "NO", "OFF")


def check_machine(recipe: Recipe, device: torch.device | None) -> None:
    """Refuse what can't run here, before anything is loaded.

    Args:
        device: None if the run is for another machine, as in a dry run.

    Raises:
        UserError: a tracker isn't installed, a paged optimizer or offloading has no GPU, or float32 products aren't
            computed in float32.
    """
    for name in recipe.training.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"training.trackers names {name}, which isn't installed: pip install {name}, or take it out of the list"
            )
    if device is not None and device.type == "cuda" and os.environ.get(_TF32, "0").strip().upper() not in _OFF:
        raise UserError(
            f"{_TF32} is set, so the projector, which trains in float32, would be computed with 10 bits after the "
            f"point; unset it: unset {_TF32}"
        )
    if device is not None:
        matmul = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
        if matmul.fp32_precision in ("tf32", "bf16"):
            raise UserError(
                f"this program has set float32 products to {matmul.fp32_precision}, so the projector, which trains in "
                'float32, would be computed more coarsely; set them back: torch.set_float32_matmul_precision("highest")'
            )
    if device is not None and device.type != "cuda":
        check_without_gpu(recipe, f"the run is on the {device}")


def preflight(
    recipe: Recipe,
    device: torch.device | None,
    say: Say,
    *,
    origin: Origin | None = None,
    shown: bool = True,
    broken: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Frontend, Prepared]:
    """Check everything that needs no weights, and prepare the data.

    Args:
        device: None if the run is for another machine, as in a dry run.
        origin: the earlier run that the weights will come from.
        shown: count the records on a terminal. In a run of several processes only the main one does.
        broken: see ``prepare_data``.

    Raises:
        UserError: models, data or settings that can't make a run.
    """
    check_machine(recipe, device)
    frontend = load_frontend(recipe.model)
    if basic_is_on(recipe):
        if device is not None:
            choose_kernels(recipe.kernels, device, say)
        supervised_layers(recipe.supervision.layers, frontend.layer_count)
    recomputed_layers(recipe.training.gradient_checkpointing, frontend.layer_count)
    if device is not None:
        choose_liger(recipe.training.use_liger_kernel, device, lambda text: None)  # what it says, ``fuse`` says again
    if origin is not None:
        require_same_model(origin.bundle, frontend.config, origin.key)
        for note in notes_on(origin, recipe):
            say(note)
    data = prepare_data(recipe, frontend, say=say, shown=shown, broken=broken)
    if not data.report.has_image.any():
        raise UserError(
            "no record of data.train has an image, so the projector would learn nothing; "
            "add records with images (a text-only LLM is better trained elsewhere)"
        )
    _require_positions(frontend, data)
    if recipe.training.eval_generate and data.eval is not None and data.eval_report is not None:
        Sample.of(recipe, frontend, data.eval, data.eval_report)  # what each evaluation will ask
    return frontend, data


def _require_positions(frontend: Frontend, data: Prepared) -> None:
    """Refuse samples that are longer than the LLM reads, as evaluations and chats do."""
    limit = most_tokens(frontend.config.text_config)
    for key, report in ((TRAIN, data.report), (EVAL, data.eval_report)):
        longest = 0 if report is None else int(report.lengths.max(initial=0))
        if limit is not None and longest > limit:
            raise UserError(
                f"{key}: the longest sample has {longest:,} tokens, pictures included, and the LLM reads {limit:,} at "
                f"most (max_position_embeddings); cut them with data.max_length={limit}, or choose another LLM"
            )


def load_for_training(
    recipe: Recipe, device: torch.device, frontend: Frontend, say: Say, *, origin: Origin | None = None
) -> Loaded:
    """Base weights, Liger, LoRA, an earlier run's weights where the recipe names one, what trains and is offloaded."""
    loaded = load_base(recipe, device, frontend)
    loaded = replace(loaded, parts=fuse(loaded.parts, recipe.training.use_liger_kernel, device, say))
    adapt(loaded.parts, recipe)
    if origin is not None:
        origin.restore(loaded.parts, recipe, say)
    return replace(loaded, offloaded=offload(loaded.parts, recipe, device))


def projector_is_fresh(recipe: Recipe) -> bool:
    """Whether the projector starts untrained."""
    return (recipe.model.base or recipe.model.projector or recipe.model.start) is None


def doubts(recipe: Recipe, data: Prepared, *, resumed: bool = False) -> list[str]:
    """What to say before a run of this recipe on this data, apart from what is refused.

    A resumed run has been told, and can't change it any more.
    """
    if resumed:
        return []
    steps, train = Schedule(data.sampler, recipe).steps, data.train
    unknown = map(str, unknown_words(train.chat, train.records, train.indices, recipe.data.max_length))
    return [*unknown, *sanity_warnings(recipe, samples=len(train), steps=steps, fresh=projector_is_fresh(recipe))]


def basic_is_on(recipe: Recipe) -> bool:
    """Whether this recipe's stage computes BASIC's losses."""
    return recipe.supervision.enabled and recipe.stage in recipe.supervision.stages


def supervision_of(
    loaded: Loaded, settings: SupervisionSection, operations: Operations, *, seed: int = 0
) -> Supervision:
    """BASIC on a loaded model, whatever its recipe's stage."""
    return Supervision(
        loaded.parts,
        settings,
        vocabulary_ids=loaded.vocabulary_ids,
        operations=operations,
        special_ids=loaded.tokenizer.all_special_ids,
        seed=seed,
    )


def supervise(
    recipe: Recipe, loaded: Loaded, say: Say, watch: Callable[[Operations], Operations] = lambda given: given
) -> Supervision | None:
    """BASIC on this model, with its operations as ``watch`` makes them; None where the recipe has it off."""
    if not basic_is_on(recipe):
        return None
    operations, reason = choose_kernels(recipe.kernels, loaded.parts.device, say)
    settings = recipe.supervision
    supervision = supervision_of(loaded, settings, watch(operations), seed=recipe.seed)
    if supervision.active and supervision.reads_attention:
        with autocast_of(recipe, supervision.device)():
            try_attention(loaded.parts.language_model, supervision.layers)
    if changed := differences(settings.model_dump(), SupervisionSection().model_dump()):
        say(
            f"note: supervision.preset is {settings.preset}, but the recipe itself has {', '.join(changed)}, and that "
            "counts; remove the lines from the recipe to take the preset's"
        )
    layers = f"layers 1..{supervision.layers} of {len(loaded.parts.layers)} ({settings.layer_weights})"
    layers = "layers that are measured" if settings.layers == MEASURED else layers
    say(
        f"BASIC: preset {settings.preset}, v̂ from {layers}, target norm {settings.target_norm}, "
        f"sinks {settings.sinks}; λ1 {settings.lambda_das:g} ({settings.direction}), λ2 {settings.lambda_sds:g}"
        f"{'' if settings.guard is None else f', guard {settings.guard:g}'}; kernels {operations.name} ({reason})"
    )
    return supervision


def uses_autocast(recipe: Recipe, device: torch.device) -> bool:
    """bf16 autocast: where asked for, or (``auto``) where the GPU has it."""
    if recipe.training.autocast == "auto":
        return has_bfloat16(device)
    return recipe.training.autocast == "bfloat16"


def machine_facts(recipe: Recipe, device: torch.device) -> dict[str, str]:
    """What a recipe leaves to the machine."""
    dtype, autocast = pick_dtype(recipe.model.dtype, device), uses_autocast(recipe, device)
    return {"device": device.type, "dtype": str(dtype), "autocast": str(autocast)}


def software_of(device: torch.device) -> dict[str, str]:
    """Versions of what a run is computed with, and the device's name."""
    cuda, rocm = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "CPU"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return versions_of(build, name)


def autocast_of(recipe: Recipe, device: torch.device, processes: Processes = ALONE) -> Autocast:
    """The context that the model's forward runs in; ``nullcontext`` where there is no autocast.

    Without a cache: it would keep a bf16 copy of each float32 adapter until the forward is over, 610 MiB in 7B at rank
    128, and none is used twice in a forward. A recomputed layer makes its copies anew either way.
    """
    if not uses_autocast(recipe, device):
        return nullcontext
    if processes.accelerator is not None:
        return functools.partial(processes.accelerator.autocast, autocast_handler=AutocastKwargs(cache_enabled=False))
    return functools.partial(torch.autocast, device.type, torch.bfloat16, cache_enabled=False)


def make_step(
    recipe: Recipe,
    loaded: Loaded,
    supervision: Supervision | None,
    device: torch.device,
    processes: Processes = ALONE,
    *,
    steps: int | None = None,
    mark: Mark = lambda name: None,
) -> TrainStep:
    """The optimizer step of a recipe on an adapted model.

    Args:
        steps: the whole run's steps, for the learning rate's schedule; None: the rates stay as they are.
        mark: see ``TrainStep``.
    """
    training = recipe.training
    optimizer = make_optimizer(loaded.parts, training, device)
    scheduler = None
    if steps is not None:
        warm_up = math.ceil(steps * training.warmup_ratio)
        scheduler = get_scheduler(training.scheduler, optimizer, num_warmup_steps=warm_up, num_training_steps=steps)
    return TrainStep(
        loaded.parts,
        supervision,
        device=device,
        optimizer=optimizer,
        scheduler=scheduler,
        max_grad_norm=training.max_grad_norm,
        autocast=autocast_of(recipe, device, processes),
        processes=processes,
        mark=mark,
        float16="float16" in (recipe.model.dtype, recipe.quantization.compute_dtype),
    )
