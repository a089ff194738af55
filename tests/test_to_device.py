"""Host tensors to a device: what is packed for one copy comes out as it went in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite import to_device as file
from basic_lite.to_device import ALIGNMENT, PACKED_BYTES, packed, to_device, unpacked

MIXED = {
    "ids": torch.arange(15).view(3, 5),
    "mask": torch.tensor([[True, False], [False, True]]),
    "none": torch.zeros(0, 7, dtype=torch.int32),
    "one": torch.tensor(2.5),
    "turned": torch.arange(6.0, dtype=torch.float64).view(2, 3).T,
    "half": torch.full((300,), -1.5, dtype=torch.bfloat16),
    "bytes": torch.arange(255, dtype=torch.uint8),
}


def test_what_is_packed_comes_out() -> None:
    buffer = packed(MIXED)
    found = unpacked(buffer, MIXED)
    for name, tensor in MIXED.items():
        assert found[name].dtype == tensor.dtype and found[name].equal(tensor), name
        assert found[name].is_contiguous() and found[name].data_ptr() % 16 == buffer.data_ptr() % 16
    assert buffer.numel() == len(MIXED) * ALIGNMENT  # half takes two places, and none takes none


def test_a_change_of_one_leaves_the_others_to_autograd() -> None:
    weight = torch.ones(3, requires_grad=True)
    found = unpacked(packed({"x": torch.ones(3), "y": torch.ones(3)}), {"x": torch.ones(3), "y": torch.ones(3)})
    loss = (weight * found["x"]).sum()
    found["y"].mul_(2)
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [1, 1, 1]


class FakeCard:
    """A device that says it is a GPU; what is copied there stays on the CPU, and each copy is counted."""

    type = "cuda"


def test_a_gpu_gets_small_tensors_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Tensor] = []
    pinned: list[Tensor] = []

    def to(tensor: Tensor, device: Any, **options: Any) -> Tensor:
        assert options == {"non_blocking": True}
        copies.append(tensor)
        return tensor

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def pinned_pack(tensors: dict[str, Tensor], *, pin: bool) -> Tensor:
        assert pin
        return pack(tensors)  # a CPU's torch pins nothing

    pack = file.packed
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(file, "packed", pinned_pack)
    large, there = torch.ones(PACKED_BYTES // 4 + 1), torch.ones(2, device="meta")
    given = {"first": torch.arange(3), "large": large, "there": there, **MIXED}
    found = to_device(given, FakeCard())  # type: ignore[arg-type]
    assert list(found) == list(given) and found["there"] is there
    assert all(found[name].equal(given[name]) for name in given if name != "there")
    assert len(copies) == 3 and copies[1] is large and copies[2] is there
    assert len(pinned) == 1 and pinned[0] is large


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_card_has_what_the_host_had() -> None:
    found = to_device(MIXED, torch.device("cuda"))
    assert all(tensor.is_cuda and tensor.cpu().equal(MIXED[name]) for name, tensor in found.items())
    assert packed(MIXED, pin=True).is_pinned()


def test_another_device_gets_each() -> None:
    found = to_device(MIXED, torch.device("meta"))
    assert list(found) == list(MIXED) and all(tensor.is_meta for tensor in found.values())
    assert to_device({}, torch.device("cpu")) == {}
