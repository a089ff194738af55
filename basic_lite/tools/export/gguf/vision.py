"""The vision tower and the projector as llama.cpp's mmproj file.

llama.cpp's converter refuses LLaVA with CLIP or SigLIP, so the names and fields are those that its loader reads
(`tools/mtmd/clip.cpp`, version 0.5).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import LlavaConfig, PreTrainedConfig

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.weights import FILE_TYPE, Entry, GgufType, Weights, stored_as

TOWER = "vision_tower.vision_model."
PROJECTOR = "multi_modal_projector."
_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_SWAPPED = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
_GELU = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True}


def layers_used(config: LlavaConfig) -> int:
    """How many layers of the tower stand before the features that the projector gets."""
    layer = int(config.vision_feature_layer)
    return layer if layer >= 0 else int(config.vision_config.num_hidden_layers) + 1 + layer


def check_vision(config: LlavaConfig, preprocessor: dict[str, Any]) -> None:
    """Refuse what llama.cpp's `mlp` projector can't do.

    Args:
        preprocessor: preprocessor_config.json.

    Raises:
        UserError: names it.
    """
    vision = config.vision_config
    select = "default" if vision.model_type.startswith("clip") else "full"
    tokens = "without the class token" if select == "default" else "whole"
    wrong = None
    if not vision.model_type.startswith(("clip", "siglip")):
        wrong = f"the vision tower is a {vision.model_type}, and llama.cpp's LLaVA has CLIP and SigLIP"
    elif config.vision_feature_select_strategy != select:
        wrong = (
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy}, and llama.cpp takes {tokens}"
        )
    elif layers_used(config) < 1:
        wrong = f"vision_feature_layer {config.vision_feature_layer} is before the first layer of the tower"
    elif config.projector_hidden_act != "gelu":
        wrong = f"the projector's activation is {config.projector_hidden_act}, and llama.cpp's is GELU"
    elif vision.hidden_act not in _GELU:
        wrong = f"the vision tower's activation is {vision.hidden_act}, and llama.cpp has {', '.join(_GELU)}"
    elif not config.multimodal_projector_bias:
        wrong = "the projector has no bias, and llama.cpp's always has one"
    else:
        wrong = _unlike(preprocessor, int(vision.image_size))
    if wrong:
        raise UserError(f"no GGUF file can be made of this model: {wrong}")


def _unlike(preprocessor: dict[str, Any], side: int) -> str | None:
    """What the image processor does otherwise than to resize to the tower's square, scale by 255, and normalise."""
    square = {"height": side, "width": side}
    if not preprocessor.get("do_resize") or preprocessor.get("size") != square:
        return f"the image processor doesn't resize pictures to {side} × {side}, as llama.cpp does"
    if preprocessor.get("do_center_crop") and preprocessor.get("crop_size") != square:
        return "the image processor crops pictures, and llama.cpp doesn't"
    scaled = preprocessor.get("do_rescale") and abs(255 * preprocessor["rescale_factor"] - 1) < 1e-6
    if not scaled or not preprocessor.get("do_normalize"):
        return "the image processor doesn't scale pixels by 255 and normalise them, as llama.cpp does"
    return None


def vision_fields(config: LlavaConfig, preprocessor: dict[str, Any], kind: GgufType, name: str) -> dict[str, Any]:
    """All fields of the file.

    Args:
        preprocessor: preprocessor_config.json.
    """
    vision = config.vision_config
    fields: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": FILE_TYPE["f32" if kind == "f32" else "f16"],
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": _GELU[vision.hidden_act],
        "clip.vision.image_size": int(vision.image_size),
        "clip.vision.patch_size": int(vision.patch_size),
        "clip.vision.embedding_length": int(vision.hidden_size),
        "clip.vision.feed_forward_length": int(vision.intermediate_size),
        "clip.vision.projection_dim": int(config.text_config.hidden_size),
        "clip.vision.block_count": layers_used(config),
        "clip.vision.feature_layer": [layers_used(config)],
        "clip.vision.attention.head_count": int(vision.num_attention_heads),
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": [float(mean) for mean in preprocessor["image_mean"]],
        "clip.vision.image_std": [float(std) for std in preprocessor["image_std"]],
    }
    if not preprocessor.get("do_pad"):
        # Without grid points llama.cpp pads a picture to a square. With one of no size it takes the path of LLaVA-1.6:
        # the whole picture is resized to the square, and no part of it follows.
        fields["clip.vision.image_grid_pinpoints"] = [0, 0]
    return fields


def vision_entries(config: LlavaConfig, weights: Weights, kind: GgufType) -> list[Entry]:
    """The tensors of the file: embeddings, the layers up to the one that is used, and the projector."""
    entries = []
    for source in weights.names(TOWER) + weights.names(PROJECTOR):
        name = _name(source, config)
        if name is None:
            continue
        shape = weights.shape(source)
        shape = (shape[-1],) if name == "v.class_embd" else shape
        # Positions and pixels enter by small tensors: they stay exact.
        stored: GgufType = "f32" if "_embd" in name else stored_as("f32" if kind == "f32" else "f16", shape)
        entries.append(Entry(name, shape, stored, source, _change(name, config.text_config)))
    return entries


def _change(name: str, text: PreTrainedConfig) -> Callable[[Tensor], Tensor] | None:
    """llama.cpp's Gemma 1 scales all embeddings by √D, where transformers scales those of words alone."""
    if text.model_type == "gemma" and name.startswith("mm.2."):
        return lambda tensor: tensor / text.hidden_size**0.5
    return None


def _name(source: str, config: LlavaConfig) -> str | None:
    """llama.cpp's name of a tensor; None for those after the features that are used."""
    if source.startswith(PROJECTOR):
        return source.replace(PROJECTOR + "linear_1", "mm.0").replace(PROJECTOR + "linear_2", "mm.2")
    part, _, suffix = source.removeprefix(TOWER).rpartition(".")
    if part.startswith("encoder.layers."):
        number, _, inner = part.removeprefix("encoder.layers.").partition(".")
        name = _LAYER[inner]
        if _same_widths(config.vision_config):
            name = _SWAPPED.get(name, name)
        return f"v.blk.{number}.{name}.{suffix}" if int(number) < layers_used(config) else None
    known = {
        "embeddings": "v.class_embd",
        "embeddings.patch_embedding": f"v.patch_embd.{suffix}",
        "embeddings.position_embedding": "v.position_embd.weight",
        "pre_layrnorm": f"v.pre_ln.{suffix}",
    }
    return known.get(part)


def _same_widths(vision: PreTrainedConfig) -> bool:
    """Whether both matrices of the tower's MLP have one shape.

    The loader takes a file for an old one, with the two exchanged, where `ffn_down` reads as many values as a hidden
    state has. With one width it always does, so they are exchanged for it.
    """
    return bool(vision.hidden_size == vision.intermediate_size)
