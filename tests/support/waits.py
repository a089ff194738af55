"""Counts where the host would wait for a GPU, on a machine that has none."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves, tree_leaves

from basic_lite.supervision import Supervision
from basic_lite.supervision.layout import Layout
from basic_lite.training.step import Batch, TrainStep
from tests.support import supervision as kit

# Their result, or its shape, depends on values: the host has to wait for them.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive", "isin", "item")
COPIES = ("_to_copy", "copy_")


class Waits(TorchDispatchMode):
    """Counts operations that would make the host wait, by name.

    Without ``on_device`` all tensors count as a GPU's. With it these do, and what is computed from them: then work on
    the host's own tensors costs nothing. A copy to another device counts where it is a blocking one.
    """

    def __init__(self, on_device: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._everything = on_device is None
        # Storages that stand for the GPU's, for as long as they live: addresses are used anew.
        self._storages: dict[int, weakref.ref[Any]] = {}
        self.put(on_device or ())

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors count as a GPU's."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._storages[key] = weakref.ref(storage, lambda _, key=key: self._storages.pop(key, None))

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor counts as a GPU's."""
        return self._everything or tensor.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(map(self.holds, inputs)):
            by_mask = name in ("index", "index_put_", "index_put") and any(
                isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
            )
            if by_mask or name in READS:
                self.found[name] += 1
            self.put(outputs)
        if name in COPIES and len({tensor.device for tensor in [*inputs, *outputs]}) > 1:
            queued = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            self.found.update([] if queued else ["copy"])
        return out


def with_copies(step: TrainStep, waits: Waits) -> TrainStep:
    """The step, its inputs and layouts copied as to a GPU, and the copies counted as a GPU's."""

    class Copying(TrainStep):
        def inputs(self, batch: Batch, *, labels: bool = True) -> Any:
            return dict(zip(inputs := super().inputs(batch, labels=labels), copied(inputs.values()), strict=True))

    def copied(tensors: Iterable[Tensor]) -> list[Tensor]:
        waits.put(found := [tensor.clone() for tensor in tensors])
        return found

    class CopiedLayouts(Supervision):
        def layout(self, batch: Any, step: int = 0) -> Layout:
            layout = super().layout(batch, step)
            waits.put(value for value in vars(layout).values() if isinstance(value, Tensor))
            return layout

    given = step.supervision
    if given is not None:
        step.supervision = CopiedLayouts(
            given.parts, given.settings, vocabulary_ids=kit.word_ids(), operations=given.operations,
            special_ids=range(20),
        )  # fmt: skip
        step.supervision.vocabulary.mean_norm()  # once a run
    return Copying(step.parts, step.supervision, device=step.device, optimizer=step.optimizer, max_grad_norm=1.0)
