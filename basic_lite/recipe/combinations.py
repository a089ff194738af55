"""Recipe keys that are each right and cannot work together: what was found, why, and which key mends it.

Each check sees the whole recipe and reports on its own, so none hides another. A check is skipped where a key it needs
has a wrong value. Rules that also need the machine or the model are in ``rules``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from basic_lite.recipe.rules import batch_problem, layers_problem, needs_gpu
from basic_lite.recipe.sources import source_findings
from basic_lite.recipe.values import Finding, Unusable, Values

# What the vocabulary tables (input embeddings and head) are called in transformers' language models.
VOCABULARY_TABLES = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings")
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
            f"{parts[0]} alone makes no model: a vision encoder and an LLM are put together; add {missing}",
        )


def _image_token(v: Values) -> Iterator[Finding]:
    token = v["model.image_token"]
    if any(character.isspace() for character in token):
        yield (
            ["model.image_token"],
            f"the placeholder {token!r} has white space in it, so tokenizers split it; write one word, as <image>",
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
                f"{target!r} is a vocabulary table, which must stay frozen: BASIC compares embeddings with it; "
                "remove it from lora.targets",
            )
        elif any(part in OUTSIDE_LLM for part in parts):
            yield (
                at,
                f"{target!r} is not part of the LLM: the projector is trained whole, the vision "
                "encoder is frozen; remove it from lora.targets",
            )


def _layers(v: Values) -> Iterator[Finding]:
    problem = layers_problem(v["supervision.layers"])
    if problem is not None:
        yield ["supervision.layers"], problem


def _supervision(v: Values) -> Iterator[Finding]:
    if v["supervision.enabled"] and not v["supervision.stages"]:
        yield (
            ["supervision.stages", "supervision.enabled"],
            "BASIC is enabled, but the list of its stages is empty; write [1, 2], or set supervision.enabled: false",
        )


def _token_weights(v: Values) -> Iterator[Finding]:
    weights = v["supervision.token_weights"]
    if not isinstance(weights, str) and weights <= 0:
        yield (
            ["supervision.token_weights"],
            f"patch weights that add up to {weights} leave no loss; give a number above 0 (attention gives at most 1), "
            "or set lambda_das and lambda_sds to 0",
        )


def _micro_batch(v: Values) -> Iterator[Finding]:
    problem = batch_problem(v["training.micro_batch"], v["training.global_batch"])
    if problem is not None:
        yield ["training.micro_batch", "training.global_batch"], problem


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
            "offload_activations moves the layer inputs that gradient checkpointing keeps; without checkpointing it "
            "would copy every activation of every layer; set training.gradient_checkpointing: true, or "
            "training.offload_activations: false",
        )


def _needs_gpu(v: Values) -> Iterator[Finding]:
    if v["training.device"] == "cpu":
        for key, message in needs_gpu(v, "training.device is cpu"):
            yield [key, "training.device"], f"{message}, or training.device: cuda"


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
    source_findings,
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
