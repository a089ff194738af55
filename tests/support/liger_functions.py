"""What Triton's interpreter lacks of what Liger's kernels use: libdevice's functions, and a type of numbers.

Imported only where the interpreter runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._implicit_cvt


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def with_numbers(argument: Any) -> Any:
    """A kernel's argument. Numbers come as Python's own otherwise, which have no ``to``."""
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
    return _convert(argument)
