"""What tests of offloading share."""

from __future__ import annotations

import pytest
from torch import Tensor

from basic_lite.model import offload
from basic_lite.model.offload import ActivationOffload


@pytest.fixture
def to_host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all activations that are offloaded, whatever their size."""
    shapes: list[tuple[int, ...]] = []
    really = ActivationOffload.to_host

    def noted(self: ActivationOffload, tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return really(self, tensor)

    monkeypatch.setattr(ActivationOffload, "to_host", noted)
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    return shapes
