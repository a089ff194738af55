"""What is trained: LoRA on the LLM by PEFT, the projector in float32 outside PEFT."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import LlavaForConditionalGeneration

from basic_lite.errors import UserError
from basic_lite.model.lora import add_in_product
from basic_lite.model.parts import Parts
from basic_lite.recipe.rules import recomputed_layers
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


@contextmanager
def adapter_off(parts: Parts) -> Iterator[None]:
    """A context in which LoRA layers give what their base layers give: the LLM as it was loaded.

    PEFT switches gradients with the layers; afterwards they are required where they were.
    """
    layers = [module for module in parts.layers.modules() if isinstance(module, BaseTunerLayer)]
    required = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in required.items():
            parameter.requires_grad_(wanted)


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


def adapt(parts: Parts, recipe: Recipe, *, on_card: bool | None = None) -> None:
    """Freeze everything, then make trainable what the recipe trains: the projector, and LoRA if it is enabled.

    LoRA is injected in place (``peft.inject_adapter_in_model``): no wrapper stands around the model, and the projector
    stays what it is. PEFT's ``modules_to_save`` would train a copy of it.

    Args:
        on_card: LoRA layers add in their product (``model.lora``). On a CPU they are PEFT's, so that a run gives the
            bits that it always gave. None: by where the model is.
    """
    model = parts.model
    model.requires_grad_(False)
    if recipe.lora.enabled:
        some = next(parts.layers.parameters())
        config = lora_config(recipe.lora, parts)
        if some.is_cuda if on_card is None else on_card:
            config = add_in_product(config)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=some.is_meta)
        dtype = getattr(torch, recipe.lora.dtype)
        for parameter in lora_parameters(model).values():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)
    parts.projector.requires_grad_(True)
    recompute(parts, recomputed_layers(recipe.training.gradient_checkpointing, len(parts.layers)))


def recompute(parts: Parts, count: int) -> None:
    """Let the backward run the first ``count`` decoder layers again; the others keep their activations.

    The first ones, because the backward comes to them last. By then the other layers have given back what they kept, so
    no other choice of as many layers has a lower peak. If the last ones are recomputed, the first of them comes on top
    of all that is kept: .46 GiB more for half of a 7B LLM at 4 × 1024 tokens (rehearsed). Every n-th layer has the peak
    of the first ones if the last isn't among them (transformers' ``every_n_layers``; in torchtitan it is), but only
    L / n layers can be had that way. Megatron-LM's ``block`` takes the first ones too.
    """
    if count:
        # On the LLM alone: the frozen tower has no backward. Re-entrant checkpointing gives None gradients where its
        # inputs don't require any, so transformers makes the embeddings require them. Ours needs no such gradient.
        model = parts.language_model
        enable = getattr(  # renamed within the range of versions
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
        model.disable_input_require_grads()
    for index, layer in enumerate(parts.layers):
        layer.gradient_checkpointing = index < count
