"""The language model's GGUF file, read back: every tensor, its values, and what the file says of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf import write_gguf
from basic_lite.tools.export.gguf.rope import rope_tensors
from basic_lite.tools.export.gguf.text import architecture_of, interleaved, text_fields, text_notes
from basic_lite.tools.export.gguf.weights import Entry, Weights, write_file
from basic_lite.training.tensor_files import save_tensors
from tests.support.gguf import byte_tokenizer, language_config, read_gguf, write_llava

ARCHITECTURE = {"mistral": "llama"}
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "phi3")
UNLIKE_LLAMA = ("qwen2", "qwen3", "gemma", "gemma3", "phi3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of models by kind, each made once."""
    made: dict[tuple[str, bool], Path] = {}

    def of(kind: str, tied: bool = True) -> Path:
        if (kind, tied) not in made:
            place = tmp_path_factory.mktemp(kind) / "model"
            tokenizer = byte_tokenizer("qwen2")
            made[kind, tied] = write_llava(place, tokenizer, kind=kind, text={"tie_word_embeddings": tied})
        return made[kind, tied]

    return of


def expected(folder: Path, kind: str) -> dict[str, Tensor]:
    """llama.cpp's name → what the tensor must be, written out by hand."""
    config = LlavaConfig.from_pretrained(folder).text_config
    source = {
        name.removeprefix("language_model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("language_model.")
    }
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "post_attention_layernorm": "post_attention_norm" if kind == "gemma3" else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{old}": f"blk.{layer}.{new}" for old, new in inner.items()}
    found = {}
    for name, tensor in source.items():
        part, _, suffix = name.rpartition(".")
        if kind.startswith("gemma") and "norm" in part:
            tensor = tensor + 1
        found[f"{names[part]}.{suffix}"] = tensor
    return found


def halves(weight: Tensor, heads: int) -> Tensor:
    """transformers' rows of queries or keys from llama.cpp's: row 2i of a head goes to i, row 2i + 1 to i + d/2."""
    rows = weight.view(heads, -1, *weight.shape[1:])
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_there_with_its_values(folder: Any, kind: str, tmp_path: Path) -> None:
    source = folder(kind)
    files = write_gguf(source, tmp_path / "out", kind="f32", say=lambda line: None)
    fields, tensors, _ = read_gguf(files.text)
    config = LlavaConfig.from_pretrained(source).text_config
    truth = expected(source, kind)
    assert tensors.keys() == truth.keys()
    for name, tensor in truth.items():
        found = torch.from_numpy(tensors[name].copy())
        if kind in ("llama", "mistral") and "attn_q" in name:
            found = halves(found, config.num_attention_heads)
        elif kind in ("llama", "mistral") and "attn_k" in name:
            found = halves(found, config.num_key_value_heads)
        assert torch.equal(found, tensor), name
    arch = ARCHITECTURE.get(kind, kind)
    assert fields["general.architecture"] == arch
    assert fields[f"{arch}.block_count"] == 4 and fields[f"{arch}.embedding_length"] == 64
    assert fields[f"{arch}.attention.head_count"] == 4 and fields[f"{arch}.attention.head_count_kv"] == 2
    assert fields[f"{arch}.attention.key_length"] == config.hidden_size // 4 * (2 if kind == "gemma3" else 1)
    assert fields[f"{arch}.rope.freq_base"] == (1_000_000 if kind == "gemma3" else 10_000)
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(config.rms_norm_eps)


def test_an_own_head_is_written(folder: Any, tmp_path: Path) -> None:
    source = folder("llama", tied=False)
    _, tensors, _ = read_gguf(write_gguf(source, tmp_path / "out", kind="f32", say=lambda line: None).text)
    head = load_file(source / "model.safetensors")["language_model.lm_head.weight"]
    assert np.array_equal(tensors["output.weight"], head.numpy())


def test_a_layer_is_rotated_as_transformers_rotates_it() -> None:
    """Neighbours of the rows for llama.cpp are the halves of transformers: their products with keys are equal."""
    torch.manual_seed(0)
    heads, width, inputs = 3, 8, 5
    query, key, x = torch.randn(heads * width, inputs), torch.randn(heads * width, inputs), torch.randn(2, inputs)
    angles = torch.rand(2, width // 2)  # position × pair

    def rotated(weight: Tensor, position: int, pairs: str) -> Tensor:
        values = (weight @ x[position]).view(heads, width)
        split = (values[:, : width // 2], values[:, width // 2 :])
        first, second = split if pairs == "halves" else (values[:, 0::2], values[:, 1::2])
        cos, sin = angles[position].cos(), angles[position].sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)

    ours = (rotated(query, 0, "halves") * rotated(key, 1, "halves")).sum(1)
    theirs = (
        rotated(interleaved(query, heads), 0, "neighbours") * rotated(interleaved(key, heads), 1, "neighbours")
    ).sum(1)
    torch.testing.assert_close(ours, theirs)


def test_f16_rounds_matrices_alone(folder: Any, tmp_path: Path) -> None:
    _, tensors, stored = read_gguf(write_gguf(folder("qwen2"), tmp_path / "out", say=lambda line: None).text)
    truth = expected(folder("qwen2"), "qwen2")
    for name, tensor in truth.items():
        assert stored[name] == ("F16" if tensor.ndim == 2 else "F32")
        rounded = tensor.half().float() if tensor.ndim == 2 else tensor
        assert np.array_equal(tensors[name], rounded.numpy()), name


def test_q8_0_is_within_half_a_step(folder: Any, tmp_path: Path) -> None:
    fields, tensors, stored = read_gguf(
        write_gguf(folder("qwen3"), tmp_path / "o", kind="q8_0", say=lambda line: None).text
    )
    assert fields["general.file_type"] == 7
    for name, tensor in expected(folder("qwen3"), "qwen3").items():
        assert stored[name] == ("Q8_0" if tensor.ndim == 2 else "F32")
        if tensor.ndim == 2:
            blocks, error = tensor.reshape(-1, 32), (torch.from_numpy(tensors[name].copy()) - tensor).reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / 127
            # The step itself is rounded to 16 bits.
            assert bool((error.abs() <= step * (0.5 + 127 * 2**-11)).all()) and float(error.abs().max()) > 0


def test_short_rows_stay_f16_and_it_is_said(tmp_path: Path) -> None:
    source = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), text={"intermediate_size": 80})
    files = write_gguf(source, tmp_path / "out", kind="q8_0", say=lambda line: None)
    _, _, stored = read_gguf(files.text)
    assert stored["blk.0.ffn_down.weight"] == "F16" and stored["blk.0.ffn_up.weight"] == "Q8_0"
    assert any("4 matrices" in note for note in files.notes)


def test_shards_in_16_bit_give_the_same_file(folder: Any, tmp_path: Path) -> None:
    """bfloat16 is a part of float32, so the file holds exactly those values; the shards are read by their index."""
    source, sharded = folder("llama"), tmp_path / "sharded"
    sharded.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (sharded / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(tensors)}
    for file in set(places.values()):
        save_tensors({name: tensor for name, tensor in tensors.items() if places[name] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    _, found, _ = read_gguf(write_gguf(sharded, tmp_path / "out", kind="f32", say=lambda line: None).text)
    assert np.array_equal(
        found["token_embd.weight"], tensors["language_model.model.embed_tokens.weight"].float().numpy()
    )
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="has no model-00002"):
        write_gguf(sharded, tmp_path / "again", say=lambda line: None)


def test_a_matrix_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = torch.arange(2 * 9000, dtype=torch.float32).view(9000, 2)
    save_tensors({"a": rows}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    entry = Entry("a", (9000, 2), "f32", "a")
    assert [len(piece) for piece in entry.pieces(weights)] == [4096, 4096, 808]
    write_file(tmp_path / "a.gguf", {"general.architecture": "llama"}, [entry], weights)
    assert np.array_equal(read_gguf(tmp_path / "a.gguf")[1]["a"], rows.numpy())


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "f32"), (float("inf"), "f16"), (7e4, "f16")])
def test_what_a_type_cannot_hold_is_refused(tmp_path: Path, value: float, kind: Any) -> None:
    save_tensors({"a": torch.full((2, 32), value)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="a holds"):
        write_file(
            tmp_path / "a.gguf", {"general.architecture": "llama"}, [Entry("a", (2, 32), kind, "a")], Weights(tmp_path)
        )


def test_gemma3_tells_its_windows() -> None:
    config = language_config("gemma3", 512, num_hidden_layers=8)
    fields = text_fields("gemma3", config)
    assert fields["gemma3.attention.sliding_window"] == 8 and fields["gemma3.rope.freq_base_swa"] == 10_000
    assert "gemma3.attention.sliding_window_pattern" not in fields  # every sixth sees all, as llama.cpp takes it
    config.layer_types = ["full_attention", *config.layer_types[1:]]
    windowed = text_fields("gemma3", config)["gemma3.attention.sliding_window_pattern"]
    assert windowed == [kind == "sliding_attention" for kind in config.layer_types]


def test_scaled_positions() -> None:
    def fields(**rope: Any) -> dict[str, Any]:
        config = LlamaConfig(rope_parameters={"rope_theta": 5e5, **rope}, architectures=["LlamaForCausalLM"])
        return text_fields("llama", config)

    linear = fields(rope_type="linear", factor=4.0)
    assert linear["llama.rope.scaling.type"] == "linear" and linear["llama.rope.scaling.factor"] == 4.0
    yarn = fields(rope_type="yarn", factor=2.0, original_max_position_embeddings=1024, beta_fast=16.0)
    assert yarn["llama.rope.scaling.original_context_length"] == 1024
    assert yarn["llama.rope.scaling.yarn_beta_fast"] == 16.0
    with pytest.raises(UserError, match="attention_factor of 2"):
        fields(rope_type="yarn", factor=2.0, original_max_position_embeddings=1024, attention_factor=2.0)
    with pytest.raises(UserError, match="by dynamic"):
        fields(rope_type="dynamic", factor=2.0)


def test_llama3_factors_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(head_dim=64, rope_parameters=rope | {"original_max_position_embeddings": 8192})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** (-torch.arange(0, 64, 2) / 64)
    factors = rope_tensors(config, 64)["rope_freqs.weight"]
    torch.testing.assert_close(plain / factors, frequencies)
    assert factors[0] == 1 and factors[-1] == 8


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("qwen2", {"head_dim": 32}, "heads together"),
        ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(kind: str, changes: dict[str, Any], found: str) -> None:
    config = language_config(kind, 512, **changes)
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
    config.architectures = [names[kind]]
    with pytest.raises(UserError, match=found):
        architecture_of(config)


def test_windows_that_llama_cpp_leaves_out_are_noted() -> None:
    assert "no more than 12" in text_notes("llama", language_config("mistral", 512))[0]
    assert text_notes("llama", language_config("mistral", 512, sliding_window=None)) == []
    assert text_notes("qwen2", language_config("qwen2", 512)) == []
