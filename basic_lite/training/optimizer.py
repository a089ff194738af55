"""AdamW in the ecosystem's variants, with one learning rate for LoRA and one for the projector."""

from typing import Any

import torch

from basic_lite.model.adapt import lora_parameters, projector_parameters
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import TrainingSection


def parameter_groups(parts: Parts, section: TrainingSection) -> list[dict[str, Any]]:
    """Parameter groups ``lora`` and ``projector``; biases are not decayed."""
    groups: list[dict[str, Any]] = []
    for name, parameters, rate in (
        ("lora", lora_parameters(parts.model), section.learning_rate),
        ("projector", projector_parameters(parts), section.projector_learning_rate),
    ):
        trainable = [p for p in parameters.values() if p.requires_grad]
        for suffix, chosen, decay in (
            ("", [p for p in trainable if p.ndim > 1], section.weight_decay),
            ("_bias", [p for p in trainable if p.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append({"name": name + suffix, "params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def make_optimizer(parts: Parts, section: TrainingSection, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    The projector's state is 32 bit with every choice: it is small, and the part this project is about.
    """
    groups = parameter_groups(parts, section)
    beta1, beta2 = section.betas
    kwargs: dict[str, Any] = {"lr": section.learning_rate, "betas": (beta1, beta2), "eps": 1e-8}
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=device.type == "cuda", **kwargs)

    import bitsandbytes as bnb

    paged = section.optimizer.startswith("paged_")
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # overrides are keyed by id(parameter), which a new run may meet again
    for parameter in parts.projector.parameters():
        manager.override_config(parameter, "optim_bits", 32)
    manager.register_parameters(groups)  # after the overrides, which it files by place in the groups
    bits = 8 if section.optimizer.endswith("8bit") else 32
    return bnb.optim.AdamW(groups, optim_bits=bits, is_paged=paged, **kwargs)
