"""How many operations BASIC adds to a micro-batch, each kernel as one. A GPU is often faster than what starts them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.supervision import Supervision
from basic_lite.training.step import StepCounts, TrainStep
from basic_lite_kernels.operations import TargetStream
from tests.support import supervision as kit
from tests.support.waits import Waits, with_copies

torch.set_num_threads(1)

# They start nothing on a GPU, or are allocations.
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "_unsafe_view", "lift_fresh")


class Started(Waits):
    """Counts the operations on what stands for a GPU's tensors, views and allocations apart."""

    def __init__(self, supervision: Supervision) -> None:
        model = supervision.parts.model
        super().__init__([*model.parameters(), *model.buffers()])
        self.started: Counter[str] = Counter()
        own = supervision.operations
        one = {name: self.one(name, getattr(own, name)) for name in ("row_scaling", "attention_mass", "vocab_kl")}
        supervision.operations = dataclasses.replace(
            own, target_stream=lambda kind: _StreamOfKernels(own.target_stream(kind), self), **one
        )

    def one(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The operation as a kernel: whatever it does is a single one."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.started[name] += 1
            with _disable_current_modes():
                out = operation(*args, **kwargs)
            self.put(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            return out

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not func.is_view and name not in FREE and any(map(self.holds, given)):
            self.started[name] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class _StreamOfKernels:
    """A target stream that adds a layer by one operation."""

    def __init__(self, stream: TargetStream, seen: Started) -> None:
        self._stream, self._seen = stream, seen
        kernels = ("add", "finish", "loss")
        self.add, self.finish, self.loss = (seen.one(name, getattr(stream, name)) for name in kernels)

    @property
    def target(self) -> Tensor | None:
        target = self._stream.target
        self._seen.put([] if target is None else [target])
        return target


def started_by_basic(layers: int, **settings: Any) -> int:
    """What a step of one micro-batch starts with BASIC, less what it starts without."""
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    batch, found = kit.tiny_batch("image"), []
    for lambdas in ((1.0, 0.01), (0.0, 0.0)):
        supervision = kit.build(model, layers=layers, **settings)
        seen = Started(supervision)
        step = with_copies(TrainStep(supervision.parts, supervision, device=torch.device("cpu")), seen)
        counts = StepCounts.of([batch], supervision.parts.image_token_id)
        with seen:
            step.gradients([batch], counts, lambdas)
        found.append(seen.started.total())
    return found[0] - found[1]


@pytest.mark.parametrize(
    ("settings", "most", "kernels_a_layer"),
    [({}, 74, 2), ({"guard": 0.5, "sinks": "drop", "target_norm": "layer"}, 125, 3)],
    ids=["paper", "guarded"],
)
def test_operations_that_basic_adds(settings: dict[str, Any], most: int, kernels_a_layer: int) -> None:
    two, four = (started_by_basic(layers, **settings) for layers in (2, 4))
    assert four - two == 2 * kernels_a_layer, "a layer starts its kernels and nothing else"
    assert two <= most, two


def test_what_is_started_is_counted() -> None:
    supervision = kit.build(kit.tiny_llava())
    seen, on_device = Started(supervision), torch.ones(4)
    seen.put([on_device])
    with seen:
        (on_device.view(2, 2) + torch.ones(2, 2)).sum()
        torch.ones(4) * 2  # the host's
    assert seen.started == {"add": 1, "sum": 1}
