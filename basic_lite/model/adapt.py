"""What is trained: LoRA on the LLM by PEFT, the projector in float32 outside PEFT."""

import re

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import LlavaForConditionalGeneration

from basic_lite.errors import UserError
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import LoraSection, Recipe

ADAPTER = "default"
DECODER = "model.language_model.layers"


def lora_config(section: LoraSection, parts: Parts) -> LoraConfig:
    """PEFT's configuration for linear layers of the decoder layers only.

    Raises:
        UserError: no linear layer has a target's name.
    """
    linears = [name for name, module in parts.layers.named_modules() if isinstance(module, nn.Linear | Linear4bit)]
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in linears))  # q_proj … down_proj
    targets = names if section.targets == "all-linear" else section.targets
    for target in targets:
        if target not in names:
            raise UserError(
                f"lora.targets names {target}, but the LLM's decoder layers have no such linear layer; "
                f"they have {', '.join(names)}. Fix lora.targets, or use all-linear"
            )
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=rf"{re.escape(DECODER)}\.\d+\..*\b({'|'.join(map(re.escape, targets))})",
        task_type=None,
    )


def lora_parameters(model: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """The adapter's parameters by full name."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def projector_parameters(parts: Parts) -> dict[str, nn.Parameter]:
    """The projector's parameters by name within it."""
    return dict(parts.projector.named_parameters())


def leave_casts_to_autocast(parts: Parts) -> None:
    """Stop LoRA layers from casting their inputs to the adapter's type: autocast casts them for the product anyway.

    With float32 adapters PEFT makes a float32 copy of every linear layer's input, and dropout makes another: 8 bytes a
    token and input feature in each layer, up to a third of what a layer's backward takes. The numbers stay the same:
    bf16 values are exact in float32, and dropout computes in float32 and rounds once either way. Without autocast the
    cast is needed, so this is for a model in training.
    """
    for module in parts.layers.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def adapt(parts: Parts, recipe: Recipe) -> None:
    """Freeze everything, then make trainable what the recipe trains: the projector, and LoRA if it is enabled.

    LoRA is injected in place (``peft.inject_adapter_in_model``): no wrapper stands around the model, and the projector
    stays what it is. PEFT's ``modules_to_save`` would train a copy of it.
    """
    model = parts.model
    model.requires_grad_(False)
    if recipe.lora.enabled:
        on_meta = next(parts.layers.parameters()).is_meta
        inject_adapter_in_model(lora_config(recipe.lora, parts), model, adapter_name=ADAPTER, low_cpu_mem_usage=on_meta)
        dtype = getattr(torch, recipe.lora.dtype)
        for parameter in lora_parameters(model).values():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)
    parts.projector.requires_grad_(True)
    if recipe.training.gradient_checkpointing:
        # On the LLM alone: the frozen tower has no backward. Re-entrant checkpointing would need inputs that require
        # gradients and gives None gradients where they don't.
        model_of_layers = parts.language_model
        enable = getattr(  # renamed within the range of versions
            model_of_layers, "activation_checkpointing_enable", model_of_layers.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
