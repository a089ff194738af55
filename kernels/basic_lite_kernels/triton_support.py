"""Where Triton kernels run: what all kernel files ask before they take a tensor. Needs no triton."""

import os

import torch
from torch import Tensor

from basic_lite_kernels.signatures import KernelUnavailable

# The oldest NVIDIA cards with bf16 matrix instructions; the kernels are compiled and checked from here on.
LEAST_CAPABILITY = (8, 0)
# Why ``attention_mass``, one operation of four, stays with plain PyTorch there.
AMD_SPILLS = "its kernels spill registers on AMD's cards"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU (TRITON_INTERPRET). It counts when a kernel file is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


# What the kernels of this process are, whatever becomes of the environment later.
INTERPRETED = interpreted()


def is_amd() -> bool:
    """Whether torch was built for AMD's cards."""
    return torch.version.hip is not None


def why_not(*tensors: Tensor) -> str | None:
    """What keeps kernels from reading these tensors; None where nothing does."""
    for x in tensors:
        if x.device.type != "cuda" and not INTERPRETED:
            return f"its tensors are on {x.device}, not a GPU"
        if x.dtype not in DTYPES:
            return f"it got {str(x.dtype).removeprefix('torch.')} tensors; kernels take float32, float16, bfloat16"
    return None


def ceil_div(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``. ``triton.cdiv`` takes the host many times as long."""
    return -(-count // size)


def require(operation: str, reason: str | None) -> None:
    """Raise where there is a reason against the kernels.

    Raises:
        KernelUnavailable: names the operation and the reason.
    """
    if reason is not None:
        raise KernelUnavailable(f"the Triton kernel of {operation} can't run: {reason}")
