"""How a step is carried out: samples at once, recomputed layers, what rests on the host. Its result is the same."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import torch

from basic_lite.console import Say
from basic_lite.model.adapt import recompute
from basic_lite.model.load import Loaded
from basic_lite.model.offload import ActivationOffload
from basic_lite.recipe.load import as_override
from basic_lite.recipe.rules import changed_recipe, recomputed_layers
from basic_lite.recipe.schema import Recipe

MICRO_BATCH, RECOMPUTED = "training.micro_batch", "training.gradient_checkpointing"
OFFLOADED, TOWER = "training.offload_activations", "model.tower_on_host"
# Key of the recipe → the plan's field.
FIELDS = {
    MICRO_BATCH: "micro_batch",
    RECOMPUTED: "recomputed",
    OFFLOADED: "offload_activations",
    TOWER: "tower_on_host",
}


@dataclass(frozen=True)
class Plan:
    """Values of the keys that change a run's memory and time, and not what it computes."""

    micro_batch: int
    recomputed: int  # decoder layers that run again in the backward, the first ones
    layers: int  # all of them
    offload_activations: bool = False
    tower_on_host: bool = False

    @classmethod
    def of(cls, recipe: Recipe, layers: int) -> Plan:
        """The recipe's own, for an LLM of so many layers."""
        training = recipe.training
        count = recomputed_layers(training.gradient_checkpointing, layers)
        return cls(training.micro_batch, count, layers, training.offload_activations, recipe.model.tower_on_host)

    @property
    def on_host(self) -> bool:
        """Whether anything rests in the host's memory."""
        return self.offload_activations or self.tower_on_host

    def values(self) -> dict[str, Any]:
        """The recipe's keys, each with its value."""
        own = {key: getattr(self, name) for key, name in FIELDS.items()}
        return own | {RECOMPUTED: {0: False, self.layers: True}.get(self.recomputed, self.recomputed)}

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this plan."""
        return changed_recipe(recipe, self.values())

    def overrides(self, other: Plan | None = None) -> str:
        """The keys as they are typed on the command line; with ``other``: those that differ from it."""
        before = [] if other is None else other.typed()
        return " ".join(text for text in self.typed() if text not in before)

    def typed(self, keys: Container[str] = FIELDS) -> list[str]:
        """Those of the ``keys`` with their values, as they are typed on the command line."""
        return [f"{key}={as_override(value)}" for key, value in self.values().items() if key in keys]

    def __str__(self) -> str:
        again = {0: "no layer recomputed", self.layers: f"all {self.layers} layers recomputed"}
        parts = [f"micro-batch {self.micro_batch}"]
        parts.append(again.get(self.recomputed, f"{self.recomputed} of {self.layers} layers recomputed"))
        if self.offload_activations:
            parts.append("their inputs on the host")
        if self.tower_on_host:
            parts.append("the vision tower on the host")
        return ", ".join(parts)


class ActivePlan:
    """The plan that a loaded model is run by, and the change to another one between two attempts at a step."""

    def __init__(self, plan: Plan, loaded: Loaded, device: torch.device) -> None:
        self.own, self.plan, self.parts, self.device = plan, plan, loaded.parts, device
        self._offloaded = loaded.offloaded

    def change(self, plan: Plan) -> None:
        """Run by another plan from now on. The vision tower stays where it is."""
        recompute(self.parts, plan.recomputed)
        if self._offloaded is not None:
            self._offloaded.remove()
            self._offloaded = None
        if plan.offload_activations and plan.recomputed:
            layers = self.parts.layers[: plan.recomputed]
            self._offloaded = ActivationOffload(self.parts.language_model, layers, self.device)
        self.plan = plan


def start_plan(own: Plan, lowered: Plan, loaded: Loaded, device: torch.device, say: Say) -> ActivePlan:
    """Start with the recipe's plan, or with what the run fell to when it ran out of memory before."""
    active = ActivePlan(own, loaded, device)
    if lowered != own:
        fewer = replace(own, micro_batch=lowered.micro_batch) == lowered
        how = f"a micro-batch of {lowered.micro_batch}" if fewer else str(lowered)
        say(f"the run ran out of memory before: it continues with {how}")
        active.change(lowered)
    return active


def given_keys(recipe: Recipe) -> frozenset[str]:
    """The keys of a plan that the recipe itself gives: these aren't chosen."""
    sections = {"training": recipe.training.model_fields_set, "model": recipe.model.model_fields_set}
    return frozenset(key for key in FIELDS if key.split(".")[1] in sections[key.split(".")[0]])


def with_given(plan: Plan, recipe: Recipe, given: frozenset[str]) -> Plan:
    """The plan, with the recipe's values for the keys that are ``given``."""
    own = Plan.of(recipe, plan.layers)
    return replace(plan, **{name: getattr(own, name) for key, name in FIELDS.items() if key in given})
