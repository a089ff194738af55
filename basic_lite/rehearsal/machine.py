"""The machine a rehearsal stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from basic_lite.model.device import ALLOWANCE_BYTES, dtype_name
from basic_lite.model.liger_kernels import choose_liger
from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import uses_autocast

aten = torch.ops.aten


@dataclass(frozen=True)
class Machine:
    """What differs between machines: types, fused operations, Liger's kernels, paging.

    A rehearsal runs on the CPU whatever it stands for; what the recipe leaves to the machine is decided here.
    """

    name: str
    dtype: torch.dtype  # of the frozen parts, what `model.dtype: auto` becomes
    compute_dtype: torch.dtype  # of products with 4-bit weights
    autocast: bool
    cuda: bool
    liger: bool  # the LLM has Liger's kernels

    @classmethod
    def card(cls, recipe: Recipe) -> Machine:
        """A CUDA card that has bfloat16, as ``train`` would use it, whatever this machine has."""
        dtype = _dtype(recipe.model.dtype, auto=torch.bfloat16)
        compute = _dtype(recipe.quantization.compute_dtype, auto=dtype)
        autocast = recipe.training.autocast in ("auto", "bfloat16")
        liger = recipe.training.use_liger_kernel is not False
        name = "a CUDA card with bfloat16"
        if dtype != torch.bfloat16:
            name = f"a CUDA card, in {dtype_name(dtype)}{' with bfloat16 autocast' if autocast else ''}"
        return cls(name, dtype, compute, autocast, cuda=True, liger=liger)

    @classmethod
    def here(cls, recipe: Recipe, device: torch.device) -> Machine:
        """A device of this machine, with the types and kernels that ``train`` takes on it."""
        dtype = pick_dtype(recipe.model.dtype, device)
        compute = _dtype(recipe.quantization.compute_dtype, auto=dtype)
        cuda = device.type == "cuda"
        # `true` where they can't run is an error, which the run reports. Nor is it said here that they aren't used.
        wanted = recipe.training.use_liger_kernel is not False
        liger = cuda and wanted and choose_liger("auto", device, lambda text: None)
        name = "this card" if cuda else "this CPU"
        return cls(name, dtype, compute, uses_autocast(recipe, device), cuda, liger)

    @classmethod
    def this_cpu(cls, recipe: Recipe) -> Machine:
        """The CPU of this machine, as ``train`` with ``training.device: cpu`` would use it."""
        return cls.here(recipe, torch.device("cpu"))

    @property
    def in_16_bit(self) -> bool:
        """Whether the model's products are in 16 bit, as the data sheets' speeds are."""
        return self.autocast or self.dtype.itemsize == self.compute_dtype.itemsize == 2

    @property
    def allowance_bytes(self) -> int:
        """What isn't rehearsed: context and fragmentation."""
        return ALLOWANCE_BYTES if self.cuda else 0

    def workspace(self, func: Any, args: Sequence[Any]) -> int:
        """Bytes an operation takes inside itself and gives back, where that is more than a few rows."""
        if self.cuda and func is aten.masked_scatter.default:
            # A running count, int64, and the mask, for every element.
            return int(args[0].numel()) * 9
        if self.cuda and func is aten.masked_select.default:
            mask = args[1].expand_as(args[0])
            # The numbers of the chosen elements, int64 for each dimension: at most one for each element.
            return int(mask.sum()) * 8 * mask.ndim + mask.numel() if not hasattr(mask, "fake_mode") else 0
        return 0


def _dtype(name: str, *, auto: torch.dtype) -> torch.dtype:
    return auto if name == "auto" else pick_dtype(name, torch.device("cpu"))
