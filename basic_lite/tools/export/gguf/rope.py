"""Rotary position embeddings as llama.cpp wants them: base, scaling, and factors of single frequencies."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.converter import OTHERWISE


def rope_fields(arch: str, config: PreTrainedConfig, head_dim: int) -> dict[str, Any]:
    """The fields that say how positions enter.

    Raises:
        UserError: positions are scaled in a way that is not written here.
    """
    rope = _full(config)
    kind = rope.get("rope_type", "default")
    rotated = int(head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    fields: dict[str, Any] = {
        f"{arch}.rope.freq_base": float(rope["rope_theta"]),
        f"{arch}.rope.dimension_count": rotated,
    }
    local = (config.rope_parameters or {}).get("sliding_attention")
    if local:
        fields[f"{arch}.rope.freq_base_swa"] = float(local["rope_theta"])
    scaling = f"{arch}.rope.scaling"
    if kind == "linear":
        fields |= {f"{scaling}.type": "linear", f"{scaling}.factor": float(rope["factor"])}
    elif kind == "yarn":
        fields |= _yarn_fields(scaling, rope)
    elif kind == "longrope":
        fields |= {f"{scaling}.type": "longrope", f"{scaling}.attn_factor": _longrope_attention(config, rope)}
    elif kind not in ("default", "llama3"):
        raise UserError(
            f"the language model scales its positions by {kind}, which isn't written here (default, linear, llama3, "
            f"yarn and longrope are); {OTHERWISE}"
        )
    if kind in ("yarn", "longrope"):
        fields[f"{scaling}.original_context_length"] = _original_length(config, rope)
    return fields


def rope_tensors(config: PreTrainedConfig, head_dim: int) -> dict[str, Tensor]:
    """Factors of single frequencies, [d/2] each, for Llama 3 and Phi-3 with a long context."""
    rope = _full(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    if kind != "llama3":
        return {}
    return {"rope_freqs.weight": _llama3_factors(rope, head_dim)}


def _full(config: PreTrainedConfig) -> dict[str, Any]:
    """The parameters of the layers that see all positions; Gemma 3 has others for its windows."""
    rope = dict(config.rope_parameters or {})
    return dict(rope.get("full_attention", rope))


def _yarn_fields(scaling: str, rope: dict[str, Any]) -> dict[str, Any]:
    factor = float(rope["factor"])
    attention = rope.get("attention_factor")
    if attention is not None and not math.isclose(attention, 0.1 * math.log(factor) + 1, rel_tol=1e-3):
        raise UserError(
            f"the language model's yarn scaling has an attention_factor of {attention}, and llama.cpp computes its own "
            f"({0.1 * math.log(factor) + 1:.4g}); such a model can't be a GGUF file"
        )
    fields = {f"{scaling}.type": "yarn", f"{scaling}.factor": factor}
    given = {key: rope[key] for key in ("beta_fast", "beta_slow") if rope.get(key) is not None}
    return fields | {f"{scaling}.yarn_{key}": float(value) for key, value in given.items()}


def _original_length(config: PreTrainedConfig, rope: dict[str, Any]) -> int:
    named = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(named or config.max_position_embeddings)


def _longrope_attention(config: PreTrainedConfig, rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = _original_length(config, rope)
    scale = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> Tensor:
    """What each frequency is divided by, [d/2]: 1 for fast ones, the factor for slow ones, smooth between."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    waves = 2 * math.pi * float(rope["rope_theta"]) ** steps
    turns = int(rope["original_max_position_embeddings"]) / waves
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / float(rope["factor"]) + smooth)
