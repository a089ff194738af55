"""An LLM whose attention isn't the softmax of its queries and keys is refused before a run."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DogeConfig
from transformers.models.llama import modeling_llama

from basic_lite.errors import UserError
from basic_lite.run import train
from basic_lite.supervision.attention_trial import try_attention
from tests.support import supervision as kit
from tests.support.runs import quiet, tiny_recipe, write_data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3", "gemma", "gemma2", "qwen2", "qwen3"])
def test_the_families_attend_as_they_say(kind: str, dtype: torch.dtype) -> None:
    language_model = kit.tiny_llava(kind, attention="eager" if kind == "gemma2" else "sdpa").model.language_model.to(
        dtype
    )
    before, state = [module.training for module in language_model.modules()], torch.get_rng_state()
    name = language_model.config._attn_implementation
    try_attention(language_model, len(language_model.layers))
    assert [module.training for module in language_model.modules()] == before
    assert language_model.config._attn_implementation == name and torch.equal(torch.get_rng_state(), state)


def changed(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Llama's attention with other weights."""
    real = modeling_llama.eager_attention_forward

    def attention(module: Any, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        out, weights = real(module, query, *rest, **options)
        return out, change(weights)

    return attention


def to_the_first(weights: Tensor) -> Tensor:
    return weights.softmax(dim=-1)


def halved(weights: Tensor) -> Tensor:
    """As where a sink that is no token takes the other half."""
    return weights / 2


@pytest.mark.parametrize("change", [to_the_first, halved])
def test_other_weights_are_refused(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", changed(change))
    language_model = kit.tiny_llava("llama").model.language_model
    name = language_model.config._attn_implementation
    with pytest.raises(UserError, match=r"in layer 1 a text's first tokens get .*; set supervision.token_weights to a"):
        try_attention(language_model, 2)
    assert language_model.config._attn_implementation == name


def test_it_keeps_no_model_alive() -> None:
    """A run of two stages loads one model after the other, and a card has room for one."""
    model = kit.tiny_llava()
    try_attention(model.model.language_model, 2)
    kept = weakref.ref(model.model.language_model.layers[0])
    del model
    gc.collect()
    assert kept() is None


def test_a_mask_of_the_models_own_is_refused() -> None:
    """Doge gives each key a weight of its own, by the mask that it hands over."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = DogeConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(config).model
    for weight in language_model.parameters():
        weight.data.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    with pytest.raises(UserError, match="the LLM DogeModel doesn't attend as its queries and keys say"):
        try_attention(language_model, 2)


def test_a_run_is_refused_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 8)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", changed(halved))
    with pytest.raises(UserError, match="doesn't attend as its queries and keys say"):
        train(tiny_recipe(tmp_path, {"name": "read"}), console=quiet())
    train(tiny_recipe(tmp_path, {"name": "even", "supervision.token_weights": 0.3}), console=quiet())
