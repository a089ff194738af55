"""Rules of a recipe that several places follow: what must hold of its keys, and what follows from them.

Each has one home and one wording here. A function named ``…_problem`` returns a message for what is wrong, without the
key's name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from basic_lite.errors import UserError
from basic_lite.recipe.presets import MEASURED
from basic_lite.recipe.problems import Values
from basic_lite.recipe.schema import Recipe, SourceSection, SupervisionSection


def sources_in(section: SourceSection | Sequence[SourceSection] | None) -> list[SourceSection]:
    """The sources of `data.train` or `data.eval`: none, one, or several."""
    return [section] if isinstance(section, SourceSection) else list(section or ())


def in_order(section: SourceSection | Sequence[SourceSection]) -> list[SourceSection]:
    """The sources in the order in which they are read: by what they say, however a recipe lists them."""
    return sorted(sources_in(section), key=SourceSection.model_dump_json)


def batch_problem(micro: int, whole: int, processes: int = 1) -> str | None:
    """The problem of a global batch that doesn't divide into micro-batches of all processes; None: it does."""
    step = micro * processes
    if whole % step == 0:
        return None
    above = math.ceil(whole / step) * step
    mend = f"set training.global_batch={above}"
    below = [size for size in range(1, min(micro, whole) + 1) if whole % (size * processes) == 0]
    if below:
        mend = f"set training.micro_batch={below[-1]}, or training.global_batch={above}"
    several = f" on each of {processes} processes" if processes > 1 else ""
    return f"micro_batch {micro}{several} does not divide global_batch {whole}; {mend}"


def accumulation(recipe: Recipe, processes: int = 1) -> int:
    """Micro-batches of one optimizer step on one process.

    Raises:
        UserError: the global batch doesn't divide over the processes.
    """
    micro, whole = recipe.training.micro_batch, recipe.training.global_batch
    problem = batch_problem(micro, whole, processes)
    if problem is not None:
        raise UserError(f"training.micro_batch: {problem}")
    return whole // (micro * processes)


def layers_problem(layers: int | float, total: int | None = None) -> str | None:
    """What is wrong with `supervision.layers`, a count or a fraction of the LLM's ``total`` layers; None: nothing."""
    if isinstance(layers, float):
        if 0 < layers <= 1:
            return None
        whole = f"; for a count of layers write {round(layers)}, without a dot" if layers > 1 else ""
        return f"give a fraction of the layers above 0 and at most 1, found {layers}{whole}"
    if layers < 1:
        return f"K = {layers} layers can't be supervised; give a count of at least 1, or a fraction like 0.5"
    if total is not None and layers > total:
        return f"K = {layers}, but the LLM has {total} layers; give a count from 1 to {total}, or a fraction like 0.5"
    return None


def evaluates(recipe: Recipe) -> bool:
    """Whether the recipe has data that its run is evaluated on."""
    return recipe.data.eval is not None or recipe.data.held_out is not None


def best_by(recipe: Recipe) -> Literal["score", "loss"] | None:
    """What the best step is chosen by; None: none is kept."""
    by = recipe.training.metric_for_best_model
    if by == "auto":
        return "score" if recipe.training.eval_generate else None
    return None if by == "off" else by


def computes_das(settings: SupervisionSection) -> bool:
    """Whether BASIC has its loss of directions, where BASIC is on."""
    return settings.direction != "off" and settings.lambda_das > 0


def computes_sds(settings: SupervisionSection) -> bool:
    """Whether BASIC has its loss over the vocabulary, where BASIC is on."""
    return settings.lambda_sds > 0


def recomputed_layers(setting: bool | int, total: int) -> int:
    """How many of the LLM's ``total`` layers `training.gradient_checkpointing` recomputes in the backward.

    Raises:
        UserError: more than there are.
    """
    if isinstance(setting, bool):
        return total if setting else 0
    if setting > total:
        raise UserError(
            f"training.gradient_checkpointing: {setting} layers can't be recomputed, since the LLM has {total}; "
            f"give a number from 0 to {total}, or true for all of them"
        )
    return setting


# Keys of the section `supervision`, and the value that asks for a measurement on the refinement batches.
_MEASURED_KEYS = (("gate", True), ("layers", MEASURED), ("layer_weights", MEASURED), ("target_norm", "layer"))


def measured_keys(value_of: Callable[[str], Any]) -> list[str]:
    """The keys of `supervision` that are decided by measurement; ``value_of`` gives a key's value."""
    return [key for key, value in _MEASURED_KEYS if value_of(key) == value]


# Key, values that need a GPU, why, what to set instead.
_GPU_ONLY = (
    ("model.attention", ("flash_attention_2",), "it is a CUDA kernel", "sdpa"),
    ("kernels", ("triton",), "its kernels run on nothing else", "reference"),
    ("training.use_liger_kernel", (True,), "its kernels run on nothing else", "auto"),
    ("training.optimizer", ("paged_adamw", "paged_adamw_8bit"), "it pages its state out of GPU memory", "adamw_8bit"),
    ("training.offload_activations", (True,), "it moves tensors out of GPU memory", "false"),
    ("model.tower_on_host", (True,), "it moves tensors out of GPU memory", "false"),
)


def needs_gpu(values: Values, where: str) -> Iterator[tuple[str, str]]:
    """Keys whose values need a GPU, each with what is wrong; ``where``: why there is none, as a clause."""
    for key, needing, why, instead in _GPU_ONLY:
        value = values.get(key)
        if value in needing:
            written = "true" if value is True else value
            yield key, f"{written} needs a GPU ({why}), but {where}; set {key}={instead}"


def check_without_gpu(recipe: Recipe, where: str) -> None:
    """Refuse a recipe that needs a GPU on a machine that has none.

    Whether flash attention and Triton's kernels work here is seen where they are loaded, so they aren't looked at.

    Args:
        where: as in "the run is on the cpu".

    Raises:
        UserError: names every such key.
    """
    looked_at = needs_gpu(Values(recipe.model_dump()), where)
    elsewhere = ("kernels", "model.attention", "training.use_liger_kernel")
    found = [f"{key}: {message}" for key, message in looked_at if key not in elsewhere]
    if found:
        raise UserError("\n".join(found))


def changed_recipe(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A copy of the recipe with keys ``section.key`` changed."""
    for path, value in changes.items():
        section, key = path.split(".")
        changed = getattr(recipe, section).model_copy(update={key: value})
        recipe = recipe.model_copy(update={section: changed})
    return recipe


def steps_an_epoch(recipe: Recipe, samples: int) -> int:
    """The steps of a pass over so many samples; the last one may have fewer."""
    return max(1, math.ceil(samples / recipe.training.global_batch))


def steps_of(recipe: Recipe, samples: int) -> int:
    """The steps of a run on so many samples."""
    training = recipe.training
    return training.max_steps or max(1, math.ceil(steps_an_epoch(recipe, samples) * training.epochs))
