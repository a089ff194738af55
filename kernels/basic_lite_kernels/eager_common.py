"""What the eager operations share: the type they compute in, and rows worked on a few at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where a tensor is float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def row_chunks(rows: int, row_bytes: int, scratch_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of chunks of rows that fit the scratch memory; one row at least."""
    step = max(1, scratch_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
