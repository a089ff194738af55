"""A recipe's model on fake tensors, made from its configurations: nothing is read, nothing is allocated."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from basic_lite.model.adapt import adapt
from basic_lite.model.frontend import Frontend
from basic_lite.model.liger import with_liger
from basic_lite.model.llava import freeze_in_no_grad
from basic_lite.model.load import Loaded, planned_model
from basic_lite.model.offload import ActivationOffload, RestOnHost
from basic_lite.model.parts import Parts, find_parts
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.ledger import HOST, Ledger, fake_like
from basic_lite.rehearsal.liger import FAKE
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.nf4 import NF4Linear

NF4, OTHER, TOWER, PROJECTOR, LORA = "NF4 weights", "other weights", "vision tower", "projector", "LoRA"


class FusedDropout(nn.Module):
    """Dropout as CUDA has it: the mask it keeps has one byte an element, the CPU's has the input's type."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, True)[0] if self.training else x


def fake_model(recipe: Recipe, frontend: Frontend, machine: Machine, ledger: Ledger) -> Loaded:
    """The model as ``load_base`` and ``adapt`` leave it, with every weight in the ledger under its part."""
    model = planned_model(frontend, machine.dtype)
    frontend = replace(frontend, config=model.config)
    model.config.use_cache = False
    # flash-attn need not be installed for an estimate; sdpa keeps as little.
    model.model.language_model.config._attn_implementation = "eager" if recipe.model.attention == "eager" else "sdpa"
    parts = find_parts(model)
    if recipe.quantization.mode == "nf4":
        options = {"double": recipe.quantization.double, "compute_dtype": machine.compute_dtype}
        _replace(parts.layers, nn.Linear, lambda linear: NF4Linear(linear, **options))
    if machine.liger:
        parts = with_liger(parts, FAKE)
    adapt(parts, recipe, on_card=machine.cuda)
    freeze_in_no_grad(parts.vision_tower)
    _materialise(parts, ledger)
    if recipe.model.tower_on_host:
        TaggedTower(parts.vision_tower, ledger)
    if machine.cuda:
        _replace(parts.layers, nn.Dropout, lambda dropout: FusedDropout(dropout.p) if 0 < dropout.p < 1 else dropout)
    model.train()
    parts.vision_tower.eval()
    return Loaded(model, parts, frontend)


class TaggedTower(RestOnHost):
    """A tower that rests on the host, with its host memory and its visits to the card in the ledger.

    Fake tensors are all on the CPU: the tag alone says where they would be.
    """

    def __init__(self, tower: nn.Module, ledger: Ledger) -> None:
        super().__init__(tower, torch.device("cpu"))
        self._ledger = ledger
        for tensor in self.host:
            ledger.enter(tensor, HOST)

    def to_device(self, host: Tensor) -> Tensor:
        """A copy that counts as the card's."""
        with self._ledger.scope(TOWER):
            return super().to_device(host)


class TaggedActivations(ActivationOffload):
    """Inputs of recomputed layers that wait on the host, in the ledger as host memory."""

    def __init__(self, language_model: nn.Module, recomputed: Sequence[nn.Module], ledger: Ledger) -> None:
        super().__init__(language_model, recomputed, torch.device("cpu"))
        self._ledger = ledger

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy that counts as the host's."""
        with self._ledger.scope(HOST):
            return super().to_host(tensor)


def _replace(layers: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put ``make(module)`` in the place of each module of a kind."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, make(child))


def _materialise(parts: Parts, ledger: Ledger) -> None:
    """Replace meta tensors by fake ones on a device, shared ones once."""
    placed = dict.fromkeys(map(id, parts.vision_tower.modules()), TOWER)
    placed |= dict.fromkeys(map(id, parts.projector.modules()), PROJECTOR)
    made: dict[int, nn.Parameter] = {}
    for path, module in parts.model.named_modules():
        of_llm = LORA if "lora_" in path else NF4 if isinstance(module, NF4Linear) else OTHER
        tag = placed.get(id(module), of_llm)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(fake_like(ledger, parameter, tag), parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake_like(ledger, buffer, tag)
