"""Recipe keys that are each right and cannot work together: what was found, why, and which key mends it.

Every check sees the whole recipe and reports on its own, so none hides another. A check that needs a key with
a wrong value of its own is skipped. What needs the models or the data (K against their L, the length of a
prompt) is checked where those are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from basic_lite.recipe.yaml import Wrong


class Unusable(Exception):
    """A key was looked up whose value is missing or wrong, which has been reported already."""


class Values:
    """Dotted look-up in nested checked values: ``values["training.micro_batch"]``.

    Raises:
        Unusable: on look-up of a key whose value is wrong, or whose section is.
    """

    def __init__(self, checked: dict[str, Any]) -> None:
        self._checked = checked

    def __getitem__(self, dotted: str) -> Any:
        value: Any = self._checked
        for part in dotted.split("."):
            if isinstance(value, Wrong):
                raise Unusable
            value = value[int(part)] if isinstance(value, list) else value[part]
        if isinstance(value, Wrong):
            raise Unusable
        return value

    def get(self, dotted: str) -> Any:
        """The value, or :class:`Wrong` where it is wrong: for a check that goes on without it."""
        try:
            return self[dotted]
        except Unusable:
            return Wrong()


# The keys concerned (the first one present in the file gives the place), and the message.
Finding = tuple[Sequence[str], str]

SOURCE_KINDS = ("path", "hub", "parquet", "saved")
COLUMN_NAMES = ("id", "image", "conversations", "question", "answer", "question_type")
# What the vocabulary tables (input embeddings and head) are called in transformers' language models.
VOCABULARY_TABLES = (
    "embed_tokens",
    "lm_head",
    "wte",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "tok_embeddings",
)
OUTSIDE_LLM = ("multi_modal_projector", "projector", "vision_tower", "vision_model")


def _models(v: Values) -> Iterator[Finding]:
    base, vision, llm = v["model.base"], v["model.vision"], v["model.llm"]
    parts = [key for key, value in (("model.vision", vision), ("model.llm", llm)) if value is not None]
    if base is not None and parts:
        what = " and ".join(parts)
        yield (
            ["model.base", *parts],
            f"model.base opens a whole checkpoint, so {what} can't be given too; remove model.base or {what}",
        )
    elif base is None and not parts:
        yield (
            ["model"],
            "no model is named; give model.vision and model.llm (a new composition), "
            "or model.base (a llava-hf checkpoint)",
        )
    elif base is None and len(parts) == 1:
        missing = "model.llm" if vision is not None else "model.vision"
        yield (
            [parts[0], missing],
            f"{parts[0]} needs {missing} beside it: a composition takes both; add {missing}",
        )


def _image_token(v: Values) -> Iterator[Finding]:
    token = v["model.image_token"]
    if any(character.isspace() for character in token):
        yield (
            ["model.image_token"],
            f"the placeholder {token!r} holds white space, so no tokenizer keeps it whole",
        )


def _name(v: Values) -> Iterator[Finding]:
    name = v["name"]
    forbidden = sorted({character for character in name if character in '/\\<>:"|?*' or not character.isprintable()})
    if forbidden or name != name.strip() or name.strip(". ") == "" or name.endswith("."):
        why = (
            f"it has {' '.join(map(repr, forbidden))} in it" if forbidden else "it starts or ends with a dot or a space"
        )
        mend = "use letters, digits, '-', '_' and '.'; a place for all runs goes into `output`"
        yield ["name"], f"{name!r} can't be the name of a folder: {why}; {mend}"


def _projector_is_another_run(v: Values) -> Iterator[Finding]:
    projector, own = v["model.projector"], Path(v["output"]) / v["name"]
    if projector is not None and os.path.abspath(projector) == os.path.abspath(own):
        yield (
            ["model.projector", "name"],
            f"the projector would be read from {own}, the folder this run itself writes; "
            "name stage 1's run folder, or change `name`",
        )


def _sources(v: Values) -> Iterator[Finding]:
    for key in ("data.train", "data.eval"):
        try:
            value = v[key]
        except Unusable:
            continue
        if value == []:
            yield (
                [key],
                f"the list of sources is empty; give at least one source with {_any_of(SOURCE_KINDS)}",
            )
        sources = [] if value is None else [(key, value)]
        if isinstance(value, list):
            sources = [(f"{key}.{number}", entry) for number, entry in enumerate(value)]
        for at, source in sources:
            if not isinstance(source, Wrong):
                yield from _source(Values(source), at)


def _source(v: Values, at: str) -> Iterator[Finding]:
    try:
        given = [kind for kind in SOURCE_KINDS if v[kind] is not None]
    except Unusable:
        return
    if not given:
        yield (
            [at],
            f"the source names no data; give one of {_any_of(f'{at}.{kind}' for kind in SOURCE_KINDS)}",
        )
    if len(given) > 1:
        named = " and ".join(f"{at}.{kind}" for kind in given)
        yield (
            [f"{at}.{kind}" for kind in given],
            f"one source can't be {named} at once; keep one, or make a list of sources",
        )
    try:
        if v["config"] is not None and given and "hub" not in given:
            yield [f"{at}.config", f"{at}.{given[0]}"], f"{at}.config belongs to {at}.hub; remove it"
        columns = v["columns"]
    except Unusable:
        return
    for name in columns:
        if name not in COLUMN_NAMES:
            near = get_close_matches(name, COLUMN_NAMES, 1, 0.0)[0]
            message = f"{name!r} is none of our names ({', '.join(COLUMN_NAMES)}); the nearest is {near!r}"
            yield [f"{at}.columns.{name}"], message


def _lora_stage(v: Values) -> Iterator[Finding]:
    if v["lora.enabled"] and v["stage"] == 1:
        yield (
            ["lora.enabled", "stage"],
            "stage 1 trains the projector alone, and lora.enabled adds adapters; set lora.enabled: false, or stage: 2",
        )


def _lora_targets(v: Values) -> Iterator[Finding]:
    targets = v["lora.targets"]
    if not v["lora.enabled"] or isinstance(targets, str):
        return
    if not targets:
        yield (
            ["lora.targets"],
            "the list is empty, so nothing would get an adapter; write all-linear, or name modules",
        )
    for number, target in enumerate(targets):
        parts = target.split(".")
        at = [f"lora.targets.{number}", "lora.targets"]
        if any(part in VOCABULARY_TABLES for part in parts):
            yield (
                at,
                f"{target!r} is a LoRA on a vocabulary table, which stays frozen: embeddings are compared "
                "with it; remove it from lora.targets",
            )
        elif any(part in OUTSIDE_LLM for part in parts):
            yield (
                at,
                f"{target!r} is not part of the LLM: the projector is trained whole, the vision "
                "encoder is frozen; remove it from lora.targets",
            )


def _layers(v: Values) -> Iterator[Finding]:
    layers = v["supervision.layers"]
    key = ["supervision.layers"]
    if isinstance(layers, int) and layers < 1:
        yield (
            key,
            f"K = {layers} layers can't be supervised; give a count of at least 1, or a fraction like 0.5",
        )
    elif isinstance(layers, float) and not 0 < layers <= 1:
        whole = f"; for a count of layers write {round(layers)}, without a dot" if layers > 1 else ""
        yield key, f"a fraction of the layers lies above 0 and is at most 1, found {layers}{whole}"


def _supervision(v: Values) -> Iterator[Finding]:
    if v["supervision.enabled"] and not v["supervision.stages"]:
        yield (
            ["supervision.stages", "supervision.enabled"],
            "BASIC is enabled and on in no stage; name stages ([1, 2]), or set supervision.enabled: false",
        )


def _token_weights(v: Values) -> Iterator[Finding]:
    weights = v["supervision.token_weights"]
    if not isinstance(weights, str) and weights <= 0:
        yield (
            ["supervision.token_weights"],
            f"a sum of patch weights of {weights} leaves nothing of both losses; give a number above 0 "
            "(attention gives at most 1), or set lambda_das and lambda_sds to 0",
        )


def _micro_batch(v: Values) -> Iterator[Finding]:
    micro, whole = v["training.micro_batch"], v["training.global_batch"]
    if whole % micro:
        below = next(size for size in range(min(micro, whole), 0, -1) if whole % size == 0)
        above = math.ceil(whole / micro) * micro
        yield (
            ["training.micro_batch", "training.global_batch"],
            f"micro_batch {micro} does not divide global_batch {whole}; "
            f"set training.micro_batch: {below}, or training.global_batch: {above}",
        )


def _betas(v: Values) -> Iterator[Finding]:
    betas = v["training.betas"]
    if not all(0 <= beta < 1 for beta in betas):
        yield (
            ["training.betas"],
            f"each beta is at least 0 and below 1, found {list(betas)}; AdamW's own are [0.9, 0.999]",
        )


def _something_trains(v: Values) -> Iterator[Finding]:
    if v["training.projector_learning_rate"] > 0:
        return
    if not v["lora.enabled"]:
        yield (
            ["training.projector_learning_rate", "lora.enabled"],
            "nothing would be trained: the projector's learning rate is 0 and there is no LoRA; "
            "set training.projector_learning_rate, or lora.enabled: true in stage 2",
        )
    elif v["training.learning_rate"] == 0:
        yield (
            ["training.learning_rate", "training.projector_learning_rate"],
            "nothing would be trained: both learning rates are 0; "
            "set training.learning_rate (LoRA) or training.projector_learning_rate",
        )


def _evaluation(v: Values) -> Iterator[Finding]:
    if v["training.eval_every"] is not None and v["data.eval"] is None:
        yield (
            ["training.eval_every", "data.eval"],
            "there is nothing to evaluate on: data.eval is not given; add data.eval, or remove training.eval_every",
        )


def _offload(v: Values) -> Iterator[Finding]:
    if v["training.offload_activations"] and not v["training.gradient_checkpointing"]:
        yield (
            ["training.offload_activations", "training.gradient_checkpointing"],
            "offload_activations moves what gradient checkpointing keeps of each layer, and without it every "
            "activation of every layer would be copied; set training.gradient_checkpointing: true, "
            "or training.offload_activations: false",
        )


def _needs_gpu(v: Values) -> Iterator[Finding]:
    if v["training.device"] != "cpu":
        return
    for key, value, instead in (
        ("model.attention", "flash_attention_2", "sdpa"),
        ("kernels", "triton", "reference"),
    ):
        if v.get(key) == value:
            yield (
                [key, "training.device"],
                f"{value} runs on a GPU only, and training.device is cpu; "
                f"set {key}: {instead}, or training.device: cuda",
            )
    for key in ("training.offload_activations", "model.tower_on_host"):
        if v.get(key) is True:
            yield (
                [key, "training.device"],
                f"{key} moves tensors out of GPU memory, and training.device is cpu; "
                f"set {key}: false, or training.device: cuda",
            )


def _flash_dtype(v: Values) -> Iterator[Finding]:
    attention, dtype = v["model.attention"], v["model.dtype"]
    if attention == "flash_attention_2" and dtype == "float32" and v["training.autocast"] == "off":
        yield (
            ["model.attention", "model.dtype"],
            "flash_attention_2 computes in 16 bit, and model.dtype is float32 with autocast off; "
            "set model.dtype: bfloat16, training.autocast: bfloat16, or model.attention: sdpa",
        )


CHECKS: tuple[Callable[[Values], Iterator[Finding]], ...] = (
    _name,
    _models,
    _image_token,
    _projector_is_another_run,
    _sources,
    _lora_stage,
    _lora_targets,
    _layers,
    _supervision,
    _token_weights,
    _micro_batch,
    _betas,
    _something_trains,
    _evaluation,
    _offload,
    _needs_gpu,
    _flash_dtype,
)


def findings(checked: dict[str, Any]) -> list[Finding]:
    """All impossible combinations in nested values, of which each is a checked value or :class:`Wrong`."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(Values(checked))
        except Unusable:
            continue
    return found


def _any_of(names: Any) -> str:
    return ", ".join(names)
