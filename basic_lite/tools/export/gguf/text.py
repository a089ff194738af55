"""The language model as GGUF: what llama.cpp wants to know of it, and its tensors under llama.cpp's names.

The names are those of the package `gguf`; what else is done to tensors follows llama.cpp's own converter
(`conversion/{llama,qwen,gemma,phi}.py`, version 0.5).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.converter import OTHERWISE
from basic_lite.tools.export.gguf.rope import rope_fields, rope_tensors
from basic_lite.tools.export.gguf.weights import Entry, GgufType, Weights, stored_as

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
"""transformers' class → llama.cpp's architecture: those that are written here."""

PREFIX = "language_model."
_ACTIVATIONS = {"gemma": ("gelu_pytorch_tanh",), "gemma3": ("gelu_pytorch_tanh",)}
_GEMMA3_PATTERN = 6  # layers from one that sees all to the next, where the file says nothing


def architecture_of(config: PreTrainedConfig) -> str:
    """llama.cpp's architecture of a language model's configuration.

    Raises:
        UserError: it is none of those written here, or has a part that llama.cpp computes in another way.
    """
    names = list(getattr(config, "architectures", None) or [])
    if not names or names[0] not in ARCHITECTURES:
        raise UserError(
            f"the language model is a {(names or [config.model_type])[0]}, and GGUF files are written here for "
            f"{', '.join(ARCHITECTURES)} only; {OTHERWISE}"
        )
    arch = ARCHITECTURES[names[0]]
    for wrong in _differences(arch, config):
        raise UserError(f"llama.cpp computes this {names[0]} in another way: {wrong}; {OTHERWISE}")
    return arch


def _differences(arch: str, config: PreTrainedConfig) -> list[str]:
    """What the configuration has that llama.cpp's graph of this architecture lacks."""
    found = []
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    expected = _ACTIVATIONS.get(arch, ("silu",))
    if activation not in expected:
        found.append(f"its activation is {activation}, there it is {expected[0]}")
    if arch in ("qwen2", "phi3") and head_dim(config) * config.num_attention_heads != config.hidden_size:
        found.append("its heads together are not as wide as its hidden states")
    if arch == "gemma3":
        if config.query_pre_attn_scalar != head_dim(config):
            found.append(f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, there it is the width of a head")
        if getattr(config, "attn_logit_softcapping", None) is not None:
            found.append("its attention logits are capped (attn_logit_softcapping)")
    return found


def head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def text_notes(arch: str, config: PreTrainedConfig) -> list[str]:
    """What llama.cpp's graph of this model leaves out."""
    notes = []
    window = getattr(config, "sliding_window", None)
    if arch != "gemma3" and window and window < config.max_position_embeddings:
        notes.append(f"llama.cpp lets a token see all before it, the training no more than {window}.")
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type") == "longrope":
        notes.append(
            "llama.cpp chooses the rotary factors by the size of its context (--ctx-size), and transformers "
            "by the text's length: keep the context no larger than the original one."
        )
    return notes


def text_fields(arch: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that describe the model, without its tokenizer."""
    fields: dict[str, Any] = {
        f"{arch}.block_count": int(config.num_hidden_layers),
        f"{arch}.context_length": int(config.max_position_embeddings),
        f"{arch}.embedding_length": int(config.hidden_size),
        f"{arch}.feed_forward_length": int(config.intermediate_size),
        f"{arch}.attention.head_count": int(config.num_attention_heads),
        f"{arch}.attention.head_count_kv": int(config.num_key_value_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.attention.key_length": head_dim(config),
        f"{arch}.attention.value_length": head_dim(config),
        f"{arch}.vocab_size": int(config.vocab_size),
    }
    if arch == "gemma3":
        fields |= _gemma3_fields(config)
    if arch == "phi3":
        # 0: no window. llama.cpp tells Phi-4 from Phi-3 by this field.
        fields["phi3.attention.sliding_window"] = int(config.sliding_window or 0)
    return fields | rope_fields(arch, config, head_dim(config))


def _gemma3_fields(config: PreTrainedConfig) -> dict[str, Any]:
    windowed = [kind == "sliding_attention" for kind in config.layer_types]
    fields: dict[str, Any] = {}
    if any(windowed):
        fields["gemma3.attention.sliding_window"] = int(config.sliding_window)
        usual = [(layer + 1) % _GEMMA3_PATTERN != 0 for layer in range(len(windowed))]
        if windowed != usual:
            fields["gemma3.attention.sliding_window_pattern"] = windowed
    if config.final_logit_softcapping:
        fields["gemma3.final_logit_softcapping"] = float(config.final_logit_softcapping)
    return fields


def text_entries(arch: str, config: PreTrainedConfig, weights: Weights, kind: GgufType) -> list[Entry]:
    """The tensors of the file.

    Raises:
        UserError: the folder has a tensor that llama.cpp has no place for, or lacks the embeddings.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], int(config.num_hidden_layers))
    entries = []
    for source in weights.names(PREFIX):
        name = names.get_name(source.removeprefix(PREFIX), try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"llama.cpp's {arch} has no place for the tensor {source}; {OTHERWISE}")
        shape = weights.shape(source)
        entries.append(Entry(name, shape, stored_as(kind, shape), source, _change(arch, source, config)))
    if "token_embd.weight" not in {entry.name for entry in entries}:
        raise UserError(f"the folder has no tensor {PREFIX}model.embed_tokens.weight; export the run again")
    for name, tensor in rope_tensors(config, head_dim(config)).items():
        entries.append(Entry(name, tuple(tensor.shape), "f32", tensor))
    return entries


def _change(arch: str, source: str, config: PreTrainedConfig) -> Callable[[Tensor], Tensor] | None:
    if arch.startswith("gemma") and source.endswith("norm.weight"):
        return lambda weight: weight + 1  # Gemma's norms multiply by 1 + weight, llama.cpp's by the weight
    part = source.split(".")[-2]
    if arch == "llama" and part in ("q_proj", "k_proj"):
        heads = int(config.num_attention_heads if part == "q_proj" else config.num_key_value_heads)
        return lambda weight: interleaved(weight, heads)
    return None


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows [H·d, …] of queries or keys, for a rotation of neighbours instead of halves.

    transformers rotates row i of a head with row i + d/2, llama.cpp's `llama` row 2i with row 2i + 1.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
