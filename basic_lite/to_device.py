"""Host tensors on a device. A GPU gets small ones by one copy, and nothing waits for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

# Larger tensors are copied by themselves: packing writes a tensor once more, and its memory lives as long as the
# others'. Token ids of 8 × 1024 just fit; a picture's bytes don't.
PACKED_BYTES = 1 << 16
# Where a tensor begins in what is packed: as torch's allocators place one, so that kernels read it the same way.
ALIGNMENT = 512


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors on ``device``, by name. A GPU's copies come out of pinned memory and are queued behind its work.

    Small tensors of the host share one copy, and memory there in which each is contiguous.
    """
    if device.type != "cuda":
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    small = {name: t for name, t in tensors.items() if t.device.type == "cpu" and t.nbytes <= PACKED_BYTES}
    buffer = packed(small, pin=True).to(device, non_blocking=True)
    there = unpacked(buffer, small)
    for name, tensor in tensors.items():
        if name not in small:
            pinned = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
            there[name] = pinned.to(device, non_blocking=True)
    return {name: there[name] for name in tensors}


def packed(tensors: Mapping[str, Tensor], *, pin: bool = False) -> Tensor:
    """The tensors' bytes one behind the other, each from a multiple of ``ALIGNMENT`` on: uint8, on the CPU."""
    buffer = torch.empty(sum(map(_room, tensors.values())), dtype=torch.uint8, pin_memory=pin)
    for place, tensor in zip(unpacked(buffer, tensors).values(), tensors.values(), strict=True):
        place.copy_(tensor)
    return buffer


def unpacked(buffer: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``packed`` was given, in its buffer's memory, with the types and shapes of ``like``."""
    found, start = {}, 0
    for name, tensor in like.items():
        # Not by a view: views of one tensor count as changed together, and autograd would refuse them all.
        own = torch.empty(0, dtype=tensor.dtype, device=buffer.device)
        found[name] = own.set_(buffer.untyped_storage(), start // tensor.itemsize, tensor.shape)
        start += _room(tensor)
    return found


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
