"""Recipe keys that are each right and cannot work together: what was found, why, and which key fixes it.

Each check sees the whole recipe and reports on its own, so none hides another. A check is skipped where a key it needs
has a wrong value. Rules that also need the machine or the model are in ``rules``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from basic_lite.choices import meant
from basic_lite.errors import UserError
from basic_lite.recipe.presets import MEASURED
from basic_lite.recipe.problems import Finding, Unusable, Values, Wrong
from basic_lite.recipe.rules import batch_problem, layers_problem, measured_keys, needs_gpu
from basic_lite.recipe.schema import ANY_SPLIT, Recipe, SourceSection

# What the vocabulary tables (input embeddings and head) are called in transformers' language models.
VOCABULARY_TABLES = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings")
KINDS = ("path", "folder", "hub", "parquet", "saved")
COLUMN_NAMES = ("id", "image", "conversations", "question", "input", "answer", "system", "history", "question_type")
# Bytes of a run's name; file systems take 255 with what is added to it.
_MOST_OF_RUN = 200
# Names that Windows keeps for devices, with any ending.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
# Tokens of a micro-batch: an 80 GB card holds some 100,000 of a 7B model's.
MOST_TOKENS = 2**24
OUTSIDE_LLM = ("multi_modal_projector", "projector", "vision_tower", "vision_model")
_HOLD_OUT = "data.eval is not given; add data.eval, keep a part of data.train for it with data.held_out=0.05"


def _nothing_held_out(v: Values) -> bool:
    return v["data.eval"] is None and v["data.held_out"] is None


# Keys, whether they can't work together, and what to do. Rules whose message names a value are functions below.
_RULES: tuple[tuple[list[str], Callable[[Values], bool], str], ...] = (
    (
        ["lora.enabled", "stage"],
        lambda v: v["lora.enabled"] and v["stage"] == 1,
        "stage 1 trains the projector alone, and lora.enabled adds adapters; set lora.enabled=false, or stage=2",
    ),
    (
        ["lora.targets"],
        lambda v: v["lora.enabled"] and v["lora.targets"] == [],
        "the list is empty, so nothing would get an adapter; write all-linear, or name modules",
    ),
    (
        ["supervision.stages", "supervision.enabled"],
        lambda v: v["supervision.enabled"] and not v["supervision.stages"],
        "BASIC is enabled, but the list of its stages is empty; write [1, 2], or set supervision.enabled=false",
    ),
    (
        ["supervision.guard", "supervision.detach"],
        lambda v: v["supervision.guard"] is not None and not v["supervision.detach"],
        "the guard weighs BASIC's gradient at v against the LM loss's, and with detach=false a part of BASIC's comes "
        "through the LLM, where the two can't be told apart; set supervision.detach=true, or supervision.guard=null",
    ),
    (
        ["training.projector_learning_rate", "lora.enabled"],
        lambda v: v["training.projector_learning_rate"] == 0 and not v["lora.enabled"],
        "nothing would be trained: the projector's learning rate is 0 and there is no LoRA; "
        "set training.projector_learning_rate, or lora.enabled=true in stage 2",
    ),
    (
        ["training.learning_rate", "training.projector_learning_rate"],
        lambda v: v["lora.enabled"] and v["training.projector_learning_rate"] == v["training.learning_rate"] == 0,
        "nothing would be trained: both learning rates are 0; "
        "set training.learning_rate (LoRA) or training.projector_learning_rate",
    ),
    (
        ["training.eval_every", "data.eval"],
        lambda v: v["training.eval_every"] is not None and _nothing_held_out(v),
        f"there is nothing to evaluate on: {_HOLD_OUT}, or remove training.eval_every",
    ),
    (
        ["training.eval_generate", "data.eval"],
        lambda v: v["training.eval_generate"] > 0 and _nothing_held_out(v),
        f"there are no held-out questions to answer: {_HOLD_OUT}, or set training.eval_generate=0",
    ),
    (
        ["training.metric_for_best_model", "training.eval_generate"],
        lambda v: v["training.metric_for_best_model"] == "score" and v["training.eval_generate"] == 0,
        "the score is that of generated answers, and eval_generate asks for none; set training.eval_generate=200, or "
        "training.metric_for_best_model=loss",
    ),
    (
        ["training.metric_for_best_model", "data.eval"],
        lambda v: v["training.metric_for_best_model"] == "loss" and _nothing_held_out(v),
        f"there is no held-out data, so no step has such a loss: {_HOLD_OUT}, or set "
        "training.metric_for_best_model=off",
    ),
    (
        ["data.held_out", "data.eval"],
        lambda v: v["data.held_out"] is not None and v["data.eval"] is not None,
        "data.held_out keeps a part of data.train for evaluation, and data.eval names other data for it; remove one",
    ),
    (
        ["training.offload_activations", "training.gradient_checkpointing"],
        lambda v: v["training.offload_activations"] and not v["training.gradient_checkpointing"],
        "offload_activations moves the inputs of the layers that gradient_checkpointing recomputes, and that is none; "
        "set training.gradient_checkpointing=true or a number of layers, or training.offload_activations=false",
    ),
    (
        ["model.attention", "model.dtype"],
        lambda v: (
            [v["model.attention"], v["model.dtype"], v["training.autocast"]] == ["flash_attention_2", "float32", "off"]
        ),
        "flash_attention_2 computes in 16 bit, and model.dtype is float32 with autocast off; "
        "set model.dtype=bfloat16, training.autocast=bfloat16, or model.attention=sdpa",
    ),
)


def _models(v: Values) -> Iterator[Finding]:
    given = [key for key in ("model.base", "model.vision", "model.llm") if v[key] is not None]
    named_by_start = v["model.start"] is not None  # whatever is missing is that run's
    if not given and not named_by_start:
        what = (
            "give model.vision and model.llm (a new composition), model.base (a llava-hf checkpoint), "
            "or model.start (a run to go on from)"
        )
        yield ["model"], f"no model is named; {what}"
    elif given[:1] == ["model.base"] and len(given) > 1:
        what = " and ".join(given[1:])
        yield given, f"model.base opens a whole checkpoint, so {what} can't be given too; remove model.base or {what}"
    elif given in (["model.vision"], ["model.llm"]) and not named_by_start:
        missing = "model.llm" if given == ["model.vision"] else "model.vision"
        what = f"{given[0]} alone makes no model: a vision encoder and an LLM are put together; add {missing}"
        yield [given[0], missing], what


def _projector_start(v: Values) -> Iterator[Finding]:
    given = [key for key in ("model.base", "model.projector", "model.start") if v[key] is not None]
    if v["model.projector_start"] == "matched" and given:
        why = f"a projector that {given[0]} brings is trained already, and scaling its output would undo that"
        yield ["model.projector_start", *given], f"{why}; remove model.projector_start, or {' and '.join(given)}"


def _image_token(v: Values) -> Iterator[Finding]:
    token = v["model.image_token"]
    if any(character.isspace() for character in token):
        yield (
            ["model.image_token"],
            f"the placeholder {token!r} has white space in it, so tokenizers split it; write one word, as <image>",
        )


def is_device(name: str) -> bool:
    """Whether Windows keeps a name for a device."""
    return name.partition(".")[0].strip().upper() in _DEVICES


def _name(v: Values) -> Iterator[Finding]:
    name = v["name"]
    if (size := len(name.encode())) > _MOST_OF_RUN:
        yield ["name"], f"it has {size} bytes, and files are named after it; choose one of {_MOST_OF_RUN} at most"
    forbidden = sorted({character for character in name if character in '/\\<>:"|?*' or not character.isprintable()})
    if is_device(name):
        yield ["name"], f"{name!r} can't be the name of a folder: on Windows it is a device; choose another name"
    elif forbidden or name != name.strip() or name.strip(". ") == "" or name.endswith("."):
        why = (
            f"it has {' '.join(map(repr, forbidden))} in it" if forbidden else "it starts or ends with a dot or a space"
        )
        mend = "use letters, digits, '-', '_' and '.'; a place for all runs goes into `output`"
        yield ["name"], f"{name!r} can't be the name of a folder: {why}; {mend}"


def _same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name one place; on Windows whatever the case of their letters."""
    return os.path.normcase(os.path.abspath(one)) == os.path.normcase(os.path.abspath(other))


def _projector_is_another_run(v: Values) -> Iterator[Finding]:
    projector, own = v["model.projector"], Path(v["output"]) / v["name"]
    if projector is not None and _same_place(projector, own):
        yield (
            ["model.projector", "name"],
            f"the projector would be read from {own}, the folder this run itself writes; "
            "name stage 1's run folder, or change `name`",
        )


def _start_is_another_run(v: Values) -> Iterator[Finding]:
    start = v["model.start"]
    if start is None:
        return
    own = Path(v["output"]) / v["name"]
    if Path(os.path.realpath(start)).is_relative_to(os.path.realpath(own)):
        yield (
            ["model.start", "name"],
            f"the run would start from {start} and be written to the same folder, {own}; "
            "give the new run a name of its own: name=…",
        )


def _lora_targets(v: Values) -> Iterator[Finding]:
    targets = v["lora.targets"]
    if not v["lora.enabled"] or isinstance(targets, str):
        return
    for number, target in enumerate(targets):
        parts = target.split(".")
        at = [f"lora.targets.{number}", "lora.targets"]
        if any(part in VOCABULARY_TABLES for part in parts):
            why = "is a vocabulary table, which must stay frozen: BASIC compares embeddings with it"
        elif any(part in OUTSIDE_LLM for part in parts):
            why = "is not part of the LLM: the projector is trained whole, the vision encoder is frozen"
        else:
            continue
        yield at, f"{target!r} {why}; remove it from lora.targets"


def _token_weights(v: Values) -> Iterator[Finding]:
    weights = v["supervision.token_weights"]
    if not isinstance(weights, str) and not 0 < weights <= 1e6:
        yield (
            ["supervision.token_weights"],
            f"patch weights that add up to {weights} leave no loss; give a number above 0 (attention gives at most 1), "
            "or set lambda_das and lambda_sds to 0",
        )


def _layers(v: Values) -> Iterator[Finding]:
    if v["supervision.layers"] != MEASURED and (problem := layers_problem(v["supervision.layers"])):
        yield ["supervision.layers"], problem


def _measured(v: Values) -> Iterator[Finding]:
    keys = measured_keys(lambda key: v[f"supervision.{key}"])
    # Eight times four samples: half of them choose, half decide, and sixteen are the least that can show anything.
    least = 1 if keys == ["target_norm"] else 8
    if v["supervision.enabled"] and keys and v["supervision.refinement_batches"] < least:
        yield (
            [*(f"supervision.{key}" for key in keys), "supervision.refinement_batches"],
            f"what it needs is measured on refinement_batches, {least} at least; set "
            "supervision.refinement_batches=16, or supervision.preset=paper",
        )


def _micro_batch(v: Values) -> Iterator[Finding]:
    if (tokens := v["training.micro_batch"] * v["data.max_length"]) > MOST_TOKENS:
        yield (
            ["training.micro_batch", "data.max_length"],
            f"micro_batch samples of max_length are {tokens:,} tokens in memory at once, more than any machine holds; "
            "set training.micro_batch=1, or data.max_length=2048",
        )
    elif problem := batch_problem(v["training.micro_batch"], v["training.global_batch"]):
        yield ["training.micro_batch", "training.global_batch"], problem


def _betas(v: Values) -> Iterator[Finding]:
    betas = v["training.betas"]
    if not all(0 <= beta < 1 for beta in betas):
        yield (
            ["training.betas"],
            f"each beta is at least 0 and below 1, found {list(betas)}; AdamW's own are [0.9, 0.999]",
        )


def _needs_gpu(v: Values) -> Iterator[Finding]:
    if v["training.device"] == "cpu":
        for key, message in needs_gpu(v, "training.device is cpu"):
            yield [key, "training.device"], f"{message}, or training.device=cuda"


def source_findings(v: Values) -> Iterator[Finding]:
    """What is wrong with the sources of `data.train` and `data.eval`."""
    for key in ("data.train", "data.eval"):
        value = v.get(key)
        if value == []:
            yield [key], f"the list of sources is empty; give at least one source with {', '.join(KINDS)}"
        sources = [] if value is None else [(key, value)]
        if isinstance(value, list):
            sources = [(f"{key}.{number}", entry) for number, entry in enumerate(value)]
        for at, source in sources:
            if not isinstance(source, Wrong):
                yield from _source(Values(source), f"{at}.")


def _source(v: Values, at: str) -> Iterator[Finding]:
    """Findings in one source; ``at``: what its keys are below, with a dot."""
    try:
        given = [f"{at}{kind}" for kind in KINDS if v[kind]]
    except Unusable:
        return
    if not given:
        yield [at.rstrip(".")], f"the source names no data; give one of {', '.join(at + kind for kind in KINDS)}"
    if len(given) > 1:
        mend = "keep one, set the other to null, or make a list of sources"
        yield given, f"one source can't be {' and '.join(given)} at once; {mend}"
    try:
        if v["config"] is not None and given and f"{at}hub" not in given:
            yield [f"{at}config", given[0]], f"{at}config belongs to {at}hub; remove it"
        if v["split"] != ANY_SPLIT and (v["path"] or v["parquet"]):
            what = f"a file has no splits, so all of it would be read, not {v['split']} alone"
            yield [f"{at}split", given[0]], f"{what}; name that part's own file in {given[0]}, and remove {at}split"
        if v["image_dir"] is not None and v["folder"]:
            yield [f"{at}image_dir"], f"the pictures are in {at}folder itself; remove {at}image_dir"
        prompts = v["prompt"]
        if prompts is not None and not all(
            one.strip() for one in ([prompts] if isinstance(prompts, str) else prompts or [""])
        ):
            yield [f"{at}prompt"], "a prompt is empty; write a question, or remove the key"
        columns = v["columns"]
    except Unusable:
        return
    for name in columns:
        if name not in COLUMN_NAMES:
            near = meant(name, COLUMN_NAMES)
            hint = f"did you mean {near!r}?" if near else "use one of them"
            yield [f"{at}columns.{name}"], f"{name!r} is none of our names ({', '.join(COLUMN_NAMES)}); {hint}"


CHECKS: tuple[Callable[[Values], Iterator[Finding]], ...] = (
    _name,
    _models,
    _projector_start,
    _image_token,
    _projector_is_another_run,
    _start_is_another_run,
    source_findings,
    _lora_targets,
    _layers,
    _measured,
    _token_weights,
    _micro_batch,
    _betas,
    _needs_gpu,
)


def findings(checked: dict[str, Any]) -> list[Finding]:
    """Find all impossible combinations. A value is a checked value or :class:`Wrong`."""
    values = Values(checked)
    found: list[Finding] = []
    for check in CHECKS:
        with suppress(Unusable):
            found += check(values)
    for keys, broken, message in _RULES:
        with suppress(Unusable):
            if broken(values):
                found.append((keys, message))
    return found


def works_together(recipe: Recipe) -> bool:
    """Whether a recipe with keys that were changed in Python would be read from a file."""
    return not findings(recipe.model_dump())


def check_source(section: SourceSection) -> None:
    """Refuse a data source that was built in Python; a recipe's have been checked already.

    Raises:
        UserError: with everything that is wrong with it.
    """
    found = [message for _, message in _source(Values(section.model_dump()), "")]
    if found:
        raise UserError("a data source can't be read: " + "; ".join(found))
