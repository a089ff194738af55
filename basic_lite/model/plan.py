"""The part table before there are weights: what loading will give, from configurations alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from basic_lite.model.adapt import adapt
from basic_lite.model.audit import Part, audit
from basic_lite.model.frontend import Frontend
from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.model.load import table_rows
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import Recipe

# bitsandbytes' NF4: a statistic for each 64 weights, float32; double: 8 bit, with a float32 for each 256 of them and
# tables of 16 and 256 float32 a layer.
BLOCK, NESTED_BLOCK = 64, 256


def nf4_bytes(weights: int, *, double: bool) -> int:
    """Bytes of ``weights`` weights in NF4 with their statistics (bitsandbytes), tables aside."""
    blocks = -(-weights // BLOCK)
    statistics = blocks + 4 * -(-blocks // NESTED_BLOCK) if double else 4 * blocks
    return -(-weights // 2) + statistics


def planned_parts(recipe: Recipe, frontend: Frontend, dtype: torch.dtype) -> list[Part]:
    """The part table of a recipe's model, made on the meta device: no weight is read or allocated."""
    config = frontend.config
    config.text_config.vocab_size = table_rows(config.text_config.vocab_size, frontend.image_token_id)
    with torch.device("meta"):
        model = BasicLlavaForConditionalGeneration(config).to(dtype)
        model.model.multi_modal_projector.float()
    model.tie_weights()
    parts = find_parts(model)
    adapt(parts, recipe)
    table = []
    for part in audit(parts):
        if part.part == "LLM linears" and recipe.quantization.mode == "nf4":
            kind = f"nf4{' double' if recipe.quantization.double else ''}"
            size = nf4_bytes(part.parameters, double=recipe.quantization.double)
            part = replace(part, module="Linear4bit", dtype=kind, bytes=size)
        table.append(part)
    return table
