"""Units of memory, and peaks in them."""

import sys

import torch

MIB = 2**20
GIB = 2**30


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's attribute is called: float32."""
    return str(dtype).removeprefix("torch.")


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 12 KiB, 340 MiB, 13.49 GiB."""
    if size_bytes < MIB:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


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
