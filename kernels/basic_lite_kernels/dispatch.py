"""Which implementation computes the operations, and why: the choice is logged, and never made silently."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Literal, NamedTuple

from basic_lite_kernels import reference

logger = logging.getLogger(__name__)


class KernelUnavailable(RuntimeError):
    """An implementation was asked for by name and can't run here."""


class Choice(NamedTuple):
    """A chosen implementation: its name, why it was chosen, and the module that has the operations."""

    name: str
    reason: str
    operations: ModuleType


def choose(kernels: Literal["auto", "triton", "reference"] = "auto") -> Choice:
    """Pick who computes the operations; log what was picked and why.

    Raises:
        KernelUnavailable: ``triton`` was asked for; this version has no Triton kernels.
        ValueError: an unknown name.
    """
    if kernels == "triton":
        raise KernelUnavailable("the Triton kernels were asked for, and this version of basic_lite_kernels has none")
    if kernels == "reference":
        choice = Choice("reference", "asked for by name", reference)
    elif kernels == "auto":
        choice = Choice("reference", "this version of basic_lite_kernels has no Triton kernels", reference)
    else:
        raise ValueError(f"unknown kernels {kernels!r}; known are auto, triton, reference")
    logger.info("BASIC operations: %s (%s)", choice.name, choice.reason)
    return choice
