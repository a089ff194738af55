"""Products, bytes and launches of a micro-batch, counted on the code that runs, and a card's time for them.

A step on fake tensors calls every operation that a real one calls. Of each are counted its floating-point operations
and the bytes that it reads and writes. A card takes the longer of both times for it. BASIC isn't in these counts: what
it takes is the same in each plan, and ``cost.basic_products`` has it.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from basic_lite.cards import Card
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.batch import Shape
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.step import Rehearser
from basic_lite.training.plan import Plan

# Micro-batches that are counted; between them, and beyond, time is taken to grow evenly.
COUNTED_SAMPLES = (1, 4)

_Operations: TypeAlias = Counter[tuple[float, float]]
# Where an operation is: in a decoder layer's forward; in its backward, with what it runs again for that; or elsewhere.
FORWARD, BACKWARD, REST = "forward", "backward", "rest"

aten = torch.ops.aten
# These start no kernel.
_FREE = {aten._unsafe_view, aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten._local_scalar_dense}
# Of their first argument they read only the rows that they give back.
_ROWS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.slice, aten.select}
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward


class Counts:
    """Operations by (floating-point operations, bytes), and how many there are of each, by place."""

    def __init__(self) -> None:
        self.of: dict[str, _Operations] = defaultdict(Counter)
        self.place = REST

    def __call__(self, func: Any, given: Any, out: Any) -> None:
        """Count an operation; a view is none."""
        kind = func.overloadpacket
        if func.namespace != "aten" or func.is_view or kind in _FREE:
            return
        args, kwargs = given
        made = sum(_bytes(tree_leaves(out)))
        read = 2 * made if kind in _ROWS else made + sum(_bytes(tree_leaves(given)))
        self.of[self.place][_flops(kind, args, kwargs, out), float(read)] += 1


def _bytes(leaves: Iterable[Any]) -> Iterable[int]:
    return (min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in leaves if isinstance(t, Tensor))


def _flops(kind: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Operations of a product, 2 a multiply-add. Attention is counted in full, not causal."""
    if kind in (_ATTENTION, _ATTENTION_BACKWARD):
        query, key = args[:2] if kind == _ATTENTION else args[1:3]
        B, H, T, d = query.shape
        return float((4 if kind == _ATTENTION else 10) * B * H * T * key.shape[2] * d)
    return float(flop_registry[kind](*args, **kwargs, out_val=out)) if kind in flop_registry else 0.0


def operations_seconds(operations: _Operations, card: Card) -> NDArray[np.float64]:
    """Seconds that the card is busy, and seconds that starting the operations takes, [2]."""
    flops, moved = card.reached_flops, card.reached_bytes
    busy = sum(count * max(f / flops, b / moved) for (f, b), count in operations.items())
    return np.array([busy, operations.total() * card.launch_s])


class MicroBatchTime:
    """Seconds of a micro-batch's forward and backward on a card, by its plan.

    Counted on the recipe's model with one decoder layer, since all layers of it take the same.

    Args:
        shape: whose tokens and images a sample has.
    """

    def __init__(self, recipe: Recipe, frontend: Frontend, machine: Machine, shape: Shape) -> None:
        self.shape, self.layers = shape, frontend.layer_count
        self._recipe = changed_recipe(
            recipe,
            {
                "training.gradient_checkpointing": True,
                "training.offload_activations": False,
                "model.tower_on_host": False,
            },
        )
        self._frontend, self._machine = frontend, machine
        self._on: dict[Card, list[NDArray[np.float64]]] = {}

    @cached_property
    def _model(self) -> Rehearser:
        """With one layer."""
        return Rehearser(self._recipe, _with_one_layer(self._frontend), self._machine, basic=False)

    @cached_property
    def _counted(self) -> list[list[_Operations]]:
        """For each of ``COUNTED_SAMPLES``: operations of all, of a layer's forward, of its backward, of both.

        A layer that runs again stops at the last tensor that its backward needs, so "both" is less than their sum.
        The tower runs in the first rehearsal of a size alone.
        """
        found = []
        for samples in COUNTED_SAMPLES:
            shape = replace(self.shape, samples=samples, accumulation=2)
            kept, again = (_count(self._model, shape, recomputed=count) for count in (0, 1))
            found.append([sum(kept.values(), Counter()), kept[FORWARD], kept[BACKWARD], again[BACKWARD]])
        return found

    @cached_property
    def tower_bytes(self) -> int:
        """Of the vision tower's weights."""
        return sum(p.numel() * p.element_size() for p in self._model.parts.vision_tower.parameters())

    def input_bytes(self, shape: Shape) -> int:
        """A layer's input, of one sample."""
        return int(shape.tokens * self._frontend.config.text_config.hidden_size * self._machine.dtype.itemsize)

    def _parts(self, card: Card) -> list[NDArray[np.float64]]:
        """For each of ``COUNTED_SAMPLES`` [3, 2]: seconds of all but the layers, of one, of running one again."""
        if card not in self._on:
            seconds = [[operations_seconds(operations, card) for operations in four] for four in self._counted]
            self._on[card] = [
                np.stack([whole - forward - backward, forward + backward, again - backward])
                for whole, forward, backward, again in seconds
            ]
        return self._on[card]

    def seconds(self, plan: Plan, card: Card) -> float:
        """Of a micro-batch, with the copies to the host and back."""
        before, after = (np.array([1, self.layers, plan.recomputed]) @ parts for parts in self._parts(card))
        low, high = COUNTED_SAMPLES
        busy, starts = (before + (after - before) * (plan.micro_batch - low) / (high - low)).tolist()
        if not card.link_a_second:
            return float(busy + starts)
        moved = 2 * plan.recomputed * plan.micro_batch * self.input_bytes(self.shape) * plan.offload_activations
        moved += self.tower_bytes * plan.tower_on_host
        # A card works while the next operations are started, a CPU doesn't.
        return float(max(busy, starts) + moved / (card.link_a_second * 1e9))

    def sample_seconds(self, plan: Plan, card: Card) -> float:
        """Of one of the micro-batch's samples."""
        return self.seconds(plan, card) / plan.micro_batch


def _with_one_layer(frontend: Frontend) -> Frontend:
    """A frontend of the same model with one decoder layer."""
    config = copy.deepcopy(frontend.config)
    text = config.text_config
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return replace(frontend, config=config)


def _count(rehearser: Rehearser, shape: Shape, *, recomputed: int) -> dict[str, _Operations]:
    """A micro-batch's operations by place; the layer is the last one."""
    counts, layer = Counts(), rehearser.parts.layers[-1]

    def now(place: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            counts.place = place

        return note

    # Whether hooks run when a layer runs again depends on transformers' version: then these change nothing.
    def enter(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if counts.place == REST:
            counts.place = FORWARD
            args[0].register_hook(now(REST))

    def leave(_layer: nn.Module, _args: Any, out: Any) -> None:
        if counts.place == FORWARD:
            counts.place = REST
            (out[0] if isinstance(out, tuple) else out).register_hook(now(BACKWARD))

    rehearser.ledger.watch = counts
    try:
        with layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave):
            rehearser.rehearse(shape, recomputed=recomputed)
    finally:
        rehearser.ledger.watch = None
    return counts.of
