"""A recipe's trainable model with random weights: configurations are read, weights are made where they are needed.

Time and memory of a step don't depend on the weights' values, so this needs no download. Each linear layer of the LLM
is drawn on the device in the run's type and quantised before the next one is drawn: while the model is made there is
never more than one such layer that isn't in 4 bit.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import replace_with_bnb_linear

from basic_lite.model.adapt import adapt
from basic_lite.model.frontend import Frontend, table_rows
from basic_lite.model.liger import fuse
from basic_lite.model.llava import BasicLlavaForConditionalGeneration, freeze_in_no_grad
from basic_lite.model.load import Loaded, keep_weights_unpacked, pick_dtype, quantization_config
from basic_lite.model.offload import offload
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import Recipe

# Standard deviation of drawn weights, as LLMs start with: with norms of 1 nothing overflows in 16 bit.
STD = 0.02


def synthetic_model(recipe: Recipe, frontend: Frontend, device: torch.device) -> Loaded:
    """The model as ``load_base`` and ``adapt`` leave it, but for its values.

    Peak bytes while it is made: those of the model + the largest linear layer of the LLM in ``model.dtype`` + what
    bitsandbytes takes to quantise it.

    Args:
        recipe: a recipe with ``model.vision`` and ``model.llm``; only their configurations are read.
        frontend: ``recipe.model``'s; not changed.
        device: where the weights are made.
    """
    assert recipe.model.base is None, "a synthetic model is composed of model.vision and model.llm"
    frontend = replace(frontend, config=copy.deepcopy(frontend.config))
    config = frontend.config
    config.text_config.vocab_size = table_rows(config.text_config.vocab_size, frontend.image_token_id)
    dtype = pick_dtype(recipe.model.dtype, device)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(
            config.text_config, dtype=dtype, attn_implementation=recipe.model.attention
        )
        vision = AutoModel.from_config(config.vision_config, dtype=dtype)
        config.text_config = llm.config
        model = BasicLlavaForConditionalGeneration(config)
    bnb = quantization_config(recipe.quantization, dtype, device, ["lm_head"])
    if bnb is not None:
        replace_with_bnb_linear(llm, modules_to_not_convert=bnb.llm_int8_skip_modules, quantization_config=bnb)
    with torch.no_grad():
        _draw_llm(llm, dtype, device, double=recipe.quantization.double)
        vision.to_empty(device=device)
        vision.apply(vision._init_weights)
    keep_weights_unpacked(llm)
    model.model.vision_tower = vision
    model.model.language_model = getattr(llm, llm.base_model_prefix)
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config).to(device)
    model.lm_head = llm.get_output_embeddings()
    model.requires_grad_(False)
    model.config.use_cache = False
    parts = find_parts(model)
    freeze_in_no_grad(parts.vision_tower)
    parts = fuse(parts, recipe.training.use_liger_kernel, device, print)
    adapt(parts, recipe)
    offload(parts, recipe, device)
    return Loaded(model, parts, frontend)


def _draw_llm(llm: PreTrainedModel, dtype: torch.dtype, device: torch.device, *, double: bool) -> None:
    """Make a model on the meta device real, module by module, by transformers' own rules for fresh models."""
    for module in llm.modules():
        if isinstance(module, Linear4bit):
            module.weight = _drawn_in_4bit(module, dtype, device, double=double)
            if module.bias is not None:
                module.bias = nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device), False)
        else:
            module.to_empty(device=device, recurse=False)
            llm._init_weights(module)
    llm.tie_weights()


def _drawn_in_4bit(layer: Linear4bit, dtype: torch.dtype, device: torch.device, *, double: bool) -> Params4bit:
    weight = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=device).normal_(0, STD)
    packed = Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=double,
        quant_type="nf4",
        quant_storage=torch.uint8,
        module=layer,
    )
    return packed.to(device)
