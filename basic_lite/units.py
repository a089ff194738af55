"""Names of types, and peaks of memory."""

import sys

import torch

from basic_lite.sizes import GIB, MIB


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's attribute is called: float32."""
    return str(dtype).removeprefix("torch.")


if sys.platform == "win32":
    import psutil
else:
    import resource


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated on the GPU, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak / GIB if sys.platform == "darwin" else peak / MIB
