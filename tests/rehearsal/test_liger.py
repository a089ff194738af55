"""Liger's kernels in a rehearsal: they keep, make and overwrite what the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from basic_lite.model.frontend import load_frontend
from basic_lite.model.liger import fusions
from basic_lite.model.liger_kernels import LigerKernels
from basic_lite.model.lora import AddmmLinear
from basic_lite.rehearsal import Machine, Rehearser
from basic_lite.rehearsal.liger import FAKE
from basic_lite.rehearsal.step import KEPT, LAYER
from tests.support.kernels import DEVICE, kernel_test
from tests.support.liger import runnable_liger
from tests.support.models import write_llm, write_vision
from tests.support.runs import whole_recipe
from tests.support.shapes import shape_recipe

KEY = "training.use_liger_kernel"


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, requires_grad=True) * 1


# Name → the inputs, of which the first two or one get gradients.
INPUTS = {
    "rms_norm": lambda: (numbers(2, 5, 16), torch.ones(16, device=DEVICE), 1e-6, 0.0, "llama"),
    "rope": lambda: (
        numbers(2, 5, 4, 8).transpose(1, 2),
        numbers(2, 5, 2, 8).transpose(1, 2),
        *torch.ones(2, 1, 5, 8, device=DEVICE),
    ),
    "swiglu": lambda: (numbers(2, 5, 16), numbers(2, 5, 16)),
    "geglu": lambda: (numbers(2, 5, 16), numbers(2, 5, 16)),
    "swiglu_halves": lambda: (numbers(2, 5, 32),),
}


def behaviour(kernels: LigerKernels, name: str) -> dict[str, object]:
    """Sizes of what is kept, shapes of results and gradients, and which of them lie where something else lay."""
    given, kept = INPUTS[name](), list[Tensor]()
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = getattr(kernels, name)(*given)
    outs = out if isinstance(out, tuple) else (out,)
    inputs = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(outs, inputs, [torch.ones_like(x) for x in outs])

    def places(tensors: list[Tensor] | tuple[Tensor, ...]) -> set[int]:
        return {x.untyped_storage().data_ptr() for x in tensors}

    return {
        "kept": sorted((x.numel(), str(x.dtype)) for x in kept),
        "results": [(x.shape, x.stride()) for x in outs],
        "gradients": [x.shape for x in gradients],
        "in place": len(places(outs) & places(inputs)),
        "gradients in what was kept": len(places(gradients) & places(kept)),
    }


@kernel_test
@pytest.mark.parametrize("name", INPUTS)
def test_the_same_memory(name: str) -> None:
    with runnable_liger() as liger:
        assert behaviour(FAKE, name) == behaviour(liger, name)


@pytest.mark.long
def test_a_card_has_them_unless_the_recipe_has_not(tmp_path: Path) -> None:
    """Without them a layer keeps several float32 copies for a norm."""
    found = {}
    for setting in ("auto", False):
        recipe = shape_recipe(tmp_path, "7b", rank=16, training={"use_liger_kernel": setting})
        rehearser = Rehearser(recipe, load_frontend(recipe.model), Machine.card(recipe), basic=False)
        assert bool(sum(one.fused for one in fusions(rehearser.parts.language_model))) == (setting == "auto")
        assert any(isinstance(m, AddmmLinear) for m in rehearser.parts.layers.modules())
        found[setting] = rehearser.rehearse(recomputed=16).by_part
    assert found["auto"][KEPT] < 0.9 * found[False][KEPT]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["phi3", "gemma3", "qwen3"])
def test_other_families_are_rehearsed(tmp_path: Path, kind: str) -> None:
    write_llm(tmp_path / "llm", kind)
    write_vision(tmp_path / "vision")
    recipe = whole_recipe(tmp_path)
    machine = Machine.card(recipe)
    short, full = (
        Rehearser(recipe, load_frontend(recipe.model), machine, in_full=in_full).rehearse() for in_full in (False, True)
    )
    assert short.peak_bytes == pytest.approx(full.peak_bytes, rel=2e-3)
    assert LAYER in full.most_by_part
