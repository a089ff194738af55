"""The machine a rehearsal stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.units import GIB

aten = torch.ops.aten
# CUDA's context, its libraries' workspaces, and what the caching allocator can't use of what it holds.
ALLOWANCE_BYTES = GIB // 2


@dataclass(frozen=True)
class Machine:
    """What differs between machines: types, fused operations, paging.

    A rehearsal runs on the CPU whatever it stands for; what the recipe leaves to the machine is decided here.
    """

    name: str
    dtype: torch.dtype  # of the frozen parts, what `model.dtype: auto` becomes
    compute_dtype: torch.dtype  # of products with 4-bit weights
    autocast: bool
    cuda: bool

    @classmethod
    def card(cls, recipe: Recipe) -> Machine:
        """A CUDA card with bfloat16, as ``train`` would use it, whatever this machine has."""
        dtype = torch.bfloat16 if recipe.model.dtype == "auto" else _named(recipe.model.dtype)
        autocast = recipe.training.autocast in ("auto", "bfloat16")
        return cls("a CUDA card with bfloat16", dtype, _compute(recipe, dtype), autocast, cuda=True)

    @classmethod
    def this_cpu(cls, recipe: Recipe) -> Machine:
        """The CPU of this machine, as ``train`` with ``training.device: cpu`` would use it."""
        dtype = pick_dtype(recipe.model.dtype, torch.device("cpu"))
        return cls("this CPU", dtype, _compute(recipe, dtype), recipe.training.autocast == "bfloat16", cuda=False)

    def workspace(self, func: Any, args: Sequence[Any]) -> int:
        """Bytes an operation takes inside itself and gives back, where that is more than a few rows."""
        if not self.cuda:
            return 0
        if func is aten.masked_scatter.default:
            # A running count, int64, and the mask, for every element.
            return int(args[0].numel()) * 9
        if func is aten.masked_select.default:
            mask = args[1].expand_as(args[0])
            # The numbers of the chosen elements, int64 for each dimension: at most one for each element.
            return int(mask.sum()) * 8 * mask.ndim + mask.numel() if not hasattr(mask, "fake_mode") else 0
        return 0


def _named(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _compute(recipe: Recipe, dtype: torch.dtype) -> torch.dtype:
    name = recipe.quantization.compute_dtype
    return dtype if name == "auto" else _named(name)
