"""The vision tower and the projector as an mmproj file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import LlavaConfig

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf import write_gguf
from basic_lite.tools.export.gguf.vision import check_vision
from tests.support.gguf import byte_tokenizer, read_gguf, write_llava

LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def mmproj(folder: Path, kind: Any = "f32") -> tuple[dict[str, Any], dict[str, Any], dict[str, str], list[str]]:
    files = write_gguf(folder, folder / "gguf", kind=kind, say=lambda line: None)
    return *read_gguf(files.mmproj), files.notes


@pytest.mark.parametrize(("tower", "layer", "used"), [("clip", -2, 3), ("siglip", -1, 4), ("clip", 2, 2)])
def test_tensors_up_to_the_layer_that_is_used(tmp_path: Path, tower: str, layer: int, used: int) -> None:
    folder = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), tower=tower, layer=layer)
    fields, tensors, _, _ = mmproj(folder)
    source = load_file(folder / "model.safetensors")
    front = "vision_tower.vision_model."
    names = {
        f"{front}embeddings.patch_embedding.weight": "v.patch_embd.weight",
        f"{front}embeddings.position_embedding.weight": "v.position_embd.weight",
    }
    if tower == "clip":
        names[f"{front}embeddings.class_embedding"] = "v.class_embd"
        names |= {f"{front}pre_layrnorm.{part}": f"v.pre_ln.{part}" for part in ("weight", "bias")}
    else:
        names[f"{front}embeddings.patch_embedding.bias"] = "v.patch_embd.bias"
    for number in range(used):
        for old, new in LAYER.items():
            for part in ("weight", "bias"):
                names[f"{front}encoder.layers.{number}.{old}.{part}"] = f"v.blk.{number}.{new}.{part}"
    for old, new in (("linear_1", "mm.0"), ("linear_2", "mm.2")):
        names |= {f"multi_modal_projector.{old}.{part}": f"{new}.{part}" for part in ("weight", "bias")}
    assert tensors.keys() == set(names.values())
    assert all(np.array_equal(tensors[new], source[old].numpy()) for old, new in names.items())
    assert fields["clip.vision.block_count"] == used and fields["clip.vision.feature_layer"] == [used]
    assert fields["clip.projector_type"] == "mlp" and fields["clip.use_gelu"] == (tower == "siglip")
    assert fields["clip.vision.image_size"] == 48 and fields["clip.vision.projection_dim"] == 64
    assert fields["clip.vision.image_mean"] == pytest.approx([0.5, 0.4, 0.3])


def test_f16_keeps_embeddings_and_biases_exact(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), tower="clip")
    _, tensors, stored, _ = mmproj(folder, "q8_0")
    matrices = {name for name, kind in stored.items() if kind == "F16"}
    assert matrices == {name for name, tensor in tensors.items() if tensor.ndim == 2 and "_embd" not in name}
    assert set(stored.values()) == {"F16", "F32"}


def test_square_pictures_take_the_path_without_padding(tmp_path: Path) -> None:
    padded = write_llava(tmp_path / "pad", byte_tokenizer("gpt-2"), fit="pad")
    fields, _, _, notes = mmproj(padded)
    assert "clip.vision.image_grid_pinpoints" not in fields
    assert any("then pads" in note for note in notes)
    assert any("(122, 116, 104), the training padded with (127, 102, 76)" in note for note in notes)
    square = write_llava(tmp_path / "square", byte_tokenizer("gpt-2"), fit="square")
    fields, _, _, notes = mmproj(square)
    assert fields["clip.vision.image_grid_pinpoints"] == [0, 0]
    assert not any("pads" in note for note in notes)


def test_an_mlp_of_one_width_is_written_as_the_loader_will_turn_it(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), vision={"intermediate_size": 64})
    _, tensors, _, _ = mmproj(folder)
    source = load_file(folder / "model.safetensors")
    first = source["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert np.array_equal(tensors["v.blk.0.ffn_down.weight"], first.numpy())


def test_gemma_gets_pictures_before_it_scales_them(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), kind="gemma")
    _, tensors, _, _ = mmproj(folder)
    source = load_file(folder / "model.safetensors")
    for part in ("weight", "bias"):
        assert np.allclose(tensors[f"mm.2.{part}"] * 8, source[f"multi_modal_projector.linear_2.{part}"])  # √64
        assert np.array_equal(tensors[f"mm.0.{part}"], source[f"multi_modal_projector.linear_1.{part}"])


def test_a_clip_tower_is_noted(tmp_path: Path) -> None:
    clip = write_llava(tmp_path / "clip", byte_tokenizer("gpt-2"), tower="clip")
    assert any("25814" in note for note in mmproj(clip)[3])
    siglip = write_llava(tmp_path / "siglip", byte_tokenizer("gpt-2"))
    assert not any("25814" in note for note in mmproj(siglip)[3])


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = write_llava(tmp_path_factory.mktemp("fitting") / "model", byte_tokenizer("gpt-2"), tower="clip")
    return folder, json.loads((folder / "preprocessor_config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"projector_hidden_act": "relu"}, "activation is relu"),
        ({"vision_feature_select_strategy": "full"}, "strategy is full, and llama.cpp takes without the class token"),
        ({"vision_feature_layer": 0}, "before the first layer"),
        ({"multimodal_projector_bias": False}, "no bias"),
    ],
)
def test_models_that_are_refused(fitting: Any, changes: dict[str, Any], found: str) -> None:
    config = LlavaConfig.from_pretrained(fitting[0], **changes)
    with pytest.raises(UserError, match=found):
        check_vision(config, fitting[1])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"size": {"shortest_edge": 48}}, "doesn't resize pictures to 48 × 48"),
        ({"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, "crops"),
        ({"rescale_factor": 1 / 127}, "scale pixels by 255"),
        ({"do_normalize": False}, "normalise"),
    ],
)
def test_image_processors_that_are_refused(fitting: Any, changes: dict[str, Any], found: str) -> None:
    config = LlavaConfig.from_pretrained(fitting[0])
    check_vision(config, fitting[1])
    with pytest.raises(UserError, match=found):
        check_vision(config, fitting[1] | changes)
