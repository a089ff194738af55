"""Liger's kernels where they are tested: on a GPU, or through Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from basic_lite.model.liger_kernels import LigerKernels, load_liger
from tests.support.kernels import INTERPRETED


@contextmanager
def runnable_liger() -> Iterator[LigerKernels]:
    """Liger's kernels; through the interpreter with what that lacks."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            from liger_kernel.ops import geglu, rms_norm
            from triton.runtime import interpreter

            from tests.support import liger_functions

            patch.setattr(interpreter, "_implicit_cvt", liger_functions.with_numbers)
            patch.setattr(rms_norm, "rsqrt", liger_functions.rsqrt)
            patch.setattr(geglu, "tanh", liger_functions.tanh)
        yield load_liger()
