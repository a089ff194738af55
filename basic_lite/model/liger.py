"""Liger's kernels in one model's LLM: modules that take the places of transformers' own.

Each keeps the children and parameters of the module that it replaces, under their names. So weights, NF4, LoRA's
targets, hooks and exports don't notice. Which classes are known stands in ``NORMS``, ``MLPS`` and ``ATTENTIONS``; any
other stays as it is, and ``fusions`` tells. They are looked up by their very class: one that looks alike may compute
something else (Granite scales, Cohere pairs other dimensions).

The vision tower stays: torch's LayerNorm is one kernel already, Liger has none for a GELU without a gate, and CLIP's
would save .2 % of a 7B step's traffic (.5 of 278 GB; bench/README.md).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma import modeling_gemma as gemma
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.phi3 import modeling_phi3 as phi3
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from basic_lite.errors import UserError
from basic_lite.model.liger_kernels import KEY, LigerKernels, choose_liger, load_liger
from basic_lite.model.parts import Parts

# Classes of the activations that a kernel has; they are other ones in other versions of transformers.
SILU = tuple({type(ACT2FN[name]) for name in ("silu", "swish")})
GELU_TANH = type(ACT2FN["gelu_pytorch_tanh"])
# What transformers calls the cache of keys and values, in its versions.
CACHES = ("cache", "past_key_values")
# Class of a norm → what is added to its weight, and where its numbers are rounded.
_LLAMA, _GEMMA = (0.0, "llama"), (1.0, "gemma")
NORMS: dict[type[nn.Module], tuple[float, str]] = {
    llama.LlamaRMSNorm: _LLAMA,
    mistral.MistralRMSNorm: _LLAMA,
    phi3.Phi3RMSNorm: _LLAMA,
    qwen2.Qwen2RMSNorm: _LLAMA,
    qwen3.Qwen3RMSNorm: _LLAMA,
    gemma.GemmaRMSNorm: _GEMMA,
    gemma3.Gemma3RMSNorm: _GEMMA,
}


class LigerNorm(nn.Module):
    """RMSNorm as one kernel."""

    def __init__(self, norm: Any, kernels: LigerKernels) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        self.offset, self.casting = NORMS[type(norm)]
        self.kernel = kernels.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        return self.kernel(x, self.weight, self.eps, self.offset, self.casting)


class LigerMlp(nn.Module):
    """down(act(gate(x)) · up(x)), what stands in brackets as one kernel."""

    def __init__(self, mlp: Any, kernels: LigerKernels) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.kernel = kernels.geglu if isinstance(mlp.act_fn, GELU_TANH) else kernels.swiglu

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        out: Tensor = self.down_proj(self.kernel(self.gate_proj(x), self.up_proj(x)))
        return out


class LigerHalvesMlp(nn.Module):
    """The same for Phi-3, whose gate and up are the halves of one product."""

    def __init__(self, mlp: Any, kernels: LigerKernels) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
        self.kernel = kernels.swiglu_halves

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        out: Tensor = self.down_proj(self.kernel(self.gate_up_proj(x)))
        return out


class _LigerAttention:
    """A family's attention with RoPE as one kernel, for whole sequences. With a cache it is the family's own.

    transformers calls RoPE as a function of the modelling file, so there is no module to replace.
    """

    eager: ClassVar[Callable[..., tuple[Tensor, Tensor | None]]]

    def __init__(self: Any, attention: Any, kernels: LigerKernels) -> None:
        with torch.device("meta"):
            super().__init__(attention.config, attention.layer_idx)  # type: ignore[call-arg]
        for name, child in attention.named_children():
            setattr(self, name, child)
        self.kernel = kernels.rope

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] → [B, T, D]."""
        if any(kwargs.get(name) is not None for name in CACHES):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)  # type: ignore[misc]
        query, key, value = (heads.transpose(1, 2) for heads in self.heads(hidden_states))
        query, key = self.kernel(query, key, *position_embeddings)
        name = self.config._attn_implementation
        attend = self.eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.window,
            **{name: value for name, value in kwargs.items() if name not in CACHES},
        )
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    @property
    def window(self: Any) -> int | None:
        """Tokens that a query sees; None: all before it. Gemma 3 and Qwen have one by layer, Llama and Gemma none."""
        seen: int | None = getattr(self, "sliding_window", None)
        return seen

    def heads(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, T, H, d], key and value [B, T, H_kv, d]."""
        query, key, value = (
            project(hidden).view(*hidden.shape[:-1], -1, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value


class _WholeWindow(_LigerAttention):
    """That of a family whose window is its config's."""

    @property
    def window(self: Any) -> int | None:
        seen: int | None = self.config.sliding_window
        return seen


class LigerLlamaAttention(_LigerAttention, llama.LlamaAttention):
    eager = staticmethod(llama.eager_attention_forward)


class LigerMistralAttention(_WholeWindow, mistral.MistralAttention):
    eager = staticmethod(mistral.eager_attention_forward)


class LigerQwen2Attention(_LigerAttention, qwen2.Qwen2Attention):
    eager = staticmethod(qwen2.eager_attention_forward)


class LigerQwen3Attention(_LigerAttention, qwen3.Qwen3Attention):
    eager = staticmethod(qwen3.eager_attention_forward)


class LigerGemmaAttention(_LigerAttention, gemma.GemmaAttention):
    eager = staticmethod(gemma.eager_attention_forward)


class LigerGemma3Attention(_LigerAttention, gemma3.Gemma3Attention):
    eager = staticmethod(gemma3.eager_attention_forward)


class LigerPhi3Attention(_WholeWindow, phi3.Phi3Attention):
    eager = staticmethod(phi3.eager_attention_forward)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value are parts of one product."""
        counts = [self.config.num_attention_heads, self.num_key_value_heads, self.num_key_value_heads]
        query, key, value = self.qkv_proj(hidden).unflatten(-1, (sum(counts), self.head_dim)).split(counts, dim=-2)
        return query, key, value


MLPS: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((llama.LlamaMLP, mistral.MistralMLP, qwen2.Qwen2MLP, qwen3.Qwen3MLP), LigerMlp),
    **dict.fromkeys((gemma.GemmaMLP, gemma3.Gemma3MLP), LigerMlp),
    phi3.Phi3MLP: LigerHalvesMlp,
}
ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    llama.LlamaAttention: LigerLlamaAttention,
    mistral.MistralAttention: LigerMistralAttention,
    qwen2.Qwen2Attention: LigerQwen2Attention,
    qwen3.Qwen3Attention: LigerQwen3Attention,
    gemma.GemmaAttention: LigerGemmaAttention,
    gemma3.Gemma3Attention: LigerGemma3Attention,
    phi3.Phi3Attention: LigerPhi3Attention,
}


def fuse(parts: Parts, setting: bool | Literal["auto"], device: torch.device, say: Callable[[str], object]) -> Parts:
    """The parts with Liger's kernels in the LLM, where the recipe and the device have them.

    Args:
        setting: the recipe's `training.use_liger_kernel`.
        device: where the model is.
        say: tells the user which of its modules stay as they are.

    Raises:
        UserError: they are asked for and can't run here, or there is none for this LLM.
    """
    if not choose_liger(setting, device, say):
        return parts
    parts = with_liger(parts, load_liger())
    found = fusions(parts.language_model)
    left = [f"{one.operation}: {one.why_not}" for one in found if one.why_not]
    if setting is True and not any(one.fused for one in found):
        raise UserError(
            f"{KEY} is true, but none of Liger's kernels is for this LLM ({'; '.join(left)}); set it to auto"
        )
    for reason in left:
        say(f"note: {reason}")
    return parts


def with_liger(parts: Parts, kernels: LigerKernels) -> Parts:
    """Put the kernels into the LLM of a model that has no adapter yet."""
    for module in reversed(list(parts.language_model.modules())):  # what stands inside first: attention has norms
        for name, child in list(module.named_children()):
            fused = _fused(child, kernels)
            if fused is not None:
                setattr(module, name, fused.train(child.training))
    return replace(parts, norm=parts.language_model.norm)


def _fused(module: nn.Module, kernels: LigerKernels) -> nn.Module | None:
    """What takes the module's place; None: it stays."""
    kind = type(module)
    if kind in NORMS:
        return LigerNorm(module, kernels)
    if kind in ATTENTIONS:
        return ATTENTIONS[kind](module, kernels)
    return MLPS[kind](module, kernels) if kind in MLPS and _has_kernel(module) else None


def _has_kernel(mlp: Any) -> bool:
    """Whether there is one for the activation of an MLP."""
    if hasattr(mlp, "gate_up_proj"):
        return isinstance(mlp.activation_fn, SILU)
    return isinstance(mlp.act_fn, (*SILU, GELU_TANH))


@dataclass(frozen=True)
class Fusion:
    """An operation of the LLM, how many of its modules have Liger's kernel, and why others have not."""

    operation: str
    fused: int
    total: int
    why_not: str


def fusions(language_model: nn.Module) -> list[Fusion]:
    """What the kernels are used for, read from the modules themselves."""
    ours = {"RMSNorm": LigerNorm, "RoPE": _LigerAttention, "gated MLP": LigerMlp | LigerHalvesMlp}
    ends = {"RMSNorm": "Norm", "RoPE": "Attention", "gated MLP": "MLP"}
    found = []
    for operation, kind in ours.items():
        modules = list(language_model.modules())
        fused = sum(isinstance(module, kind) for module in modules)
        left = [m for m in modules if not isinstance(m, kind) and type(m).__name__.endswith(ends[operation])]
        names = Counter(_named(module) for module in left)
        why_not = f"Liger's kernel isn't for {', '.join(names)}" if names else ""
        found.append(Fusion(operation, fused, fused + len(left), why_not))
    return found


def _named(module: Any) -> str:
    """A module's class, with the activation where that decides."""
    name = type(module).__name__
    if type(module) not in MLPS:
        return name
    activation = module.activation_fn if hasattr(module, "activation_fn") else module.act_fn
    return f"{name} with {type(activation).__name__}"
