"""Tiny random models of every family that can be looked into, and their inputs made of pictures, without processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    PixtralVisionConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

IMAGE, WORDS, WIDTH, LAYERS = 7, 40, 32, 4
BEFORE, AFTER = [1, 9, 10], [11, 12, 13, 14, 2]  # text around the pictures
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": WIDTH,
}


@dataclass(frozen=True)
class Tiny:
    """A family's tiny configuration, and its picture's way to inputs.

    Attributes:
        side: pixels of a picture's side.
        cells: visual tokens in a row of the picture.
        first: the visual token of the upper left cell.
        gap: visual tokens at the end of a line that are no patches.
        count: visual tokens of a picture, those included.
        inputs: pictures [n, 3, side, side] → the model's inputs but for the text's.
    """

    config: dict[str, Any]
    side: int
    cells: int
    count: int
    inputs: Callable[[Tensor], dict[str, Tensor]]
    first: int = 0
    gap: int = 0
    types: str | None = None  # the input that marks visual tokens with 1

    def model(self, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**self.config))
        for parameter in model.parameters():  # some begin at zero, or so small that nothing would be seen
            torch.nn.init.normal_(parameter, std=0.15)
        return model.eval()

    def batch(self, pictures: Tensor) -> dict[str, Tensor]:
        """One sample with all the pictures, and text around them."""
        ids = [*BEFORE, *[*[IMAGE] * self.count, 15] * len(pictures), *AFTER]
        out = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        if self.types == "token_type_ids" and self.config["model_type"] == "paligemma":  # 0 prompt, 1 answer
            out[self.types] = torch.tensor([[0] * (len(ids) - len(AFTER)) + [1] * len(AFTER)])
        elif self.types is not None:
            out[self.types] = (out["input_ids"] == IMAGE).long()
        return out | self.inputs(pictures)


def pictures(tiny: Tiny, count: int, seed: int = 0) -> Tensor:
    """Random ones, [count, 3, side, side]."""
    return torch.randn(count, 3, tiny.side, tiny.side, generator=torch.Generator().manual_seed(seed))


def _whole(values: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": values}


def _tiles(values: Tensor) -> dict[str, Tensor]:
    """The whole picture, made small, then its four quarters: [n, 5, 3, 16, 16]."""
    quarters = values.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    tiles = torch.cat([functional.avg_pool2d(values, 2)[:, None], quarters], dim=1)
    return {"pixel_values": tiles, "image_sizes": torch.tensor([[32, 32]] * len(values))}


def _sized(values: Tensor) -> dict[str, Tensor]:
    sizes = torch.tensor([list(values.shape[2:])] * len(values))
    return {"pixel_values": values, "image_sizes": sizes}


def _flat_patches(values: Tensor) -> dict[str, Tensor]:
    """LFM2-VL: patches of 4 × 4 pixels, row by row, [n, patches, 48]."""
    n, _, height, width = values.shape
    patches = values.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(n, -1, 48)
    mask = torch.ones(patches.shape[:2], dtype=torch.int64)
    shapes = torch.tensor([[height // 4, width // 4]] * n)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _qwen_patches(values: Tensor) -> dict[str, Tensor]:
    """Patches of two equal frames, those that are merged beside one another, [patches, 3 · 2 · 4 · 4]."""
    n, _, height, width = values.shape
    rows, columns = height // 8, width // 8
    cut = values.reshape(n, 3, rows, 2, 4, columns, 2, 4).permute(0, 2, 5, 3, 6, 1, 4, 7)  # …, [3, 4, 4]
    patches = cut.unsqueeze(6).expand(*cut.shape[:6], 2, 4, 4).reshape(-1, 96)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, height // 4, width // 4]] * n)}


def _siglip(**changes: Any) -> dict[str, Any]:
    return SiglipVisionConfig(**{**VISION, **changes}).to_dict()


def _text(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **TEXT, **changes}


_PIXTRAL = PixtralVisionConfig(**{**VISION, "image_size": 32, "head_dim": 8}).to_dict()
_CLIP = CLIPVisionConfig(**{**VISION, "patch_size": 8}).to_dict()
_COMMON = {"image_token_id": IMAGE, "tie_word_embeddings": False}
_GRIDS = {"image_grid_pinpoints": [[32, 32]], "vision_feature_layer": -1, "image_token_index": IMAGE}
_QWEN = {**_COMMON, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6}
_IDEFICS = {**_COMMON, "scale_factor": 2, "text_config": _text("llama")}


def _joined(model_type: str, **changes: Any) -> Tiny:
    """Two by two patches in a token, without tiles: four tokens a picture."""
    return Tiny({"model_type": model_type, **changes}, 16, 2, 4, lambda v: {"pixel_values": v[None]})


TINY = {
    "LLaVA-1.5": Tiny(
        {"model_type": "llava", "vision_config": _CLIP, "text_config": _text("llama"), **_COMMON}, 16, 2, 4, _whole
    ),
    "LLaVA-NeXT": Tiny(
        {"model_type": "llava_next", "vision_config": _CLIP, "text_config": _text("llama"), **_COMMON, **_GRIDS},
        32, 4, 24, _tiles, first=4, gap=1,
    ),
    "LLaVA-OneVision": Tiny(
        {
            "model_type": "llava_onevision", "vision_config": _siglip(patch_size=8), "text_config": _text("qwen2"),
            **_COMMON, **_GRIDS, "video_token_id": 8, "vision_feature_select_strategy": "full",
        },
        32, 4, 24, _tiles, first=4, gap=1,
    ),
    "Idefics3": _joined("idefics3", vision_config={**VISION, "model_type": "idefics3_vision"}, **_IDEFICS),
    "SmolVLM": _joined("smolvlm", vision_config={**VISION, "model_type": "smolvlm_vision"}, **_IDEFICS),
    "InternVL": Tiny(
        {
            "model_type": "internvl", "text_config": _text("qwen2"), **_COMMON, "image_seq_length": 4,
            "vision_config": {**VISION, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [4, 4]},
        },
        16, 2, 4, _whole,
    ),
    "Qwen2.5-VL": Tiny(
        {
            "model_type": "qwen2_5_vl", **_QWEN, "text_config": _text("qwen2_5_vl_text", **MROPE),
            "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        },
        32, 4, 16, _qwen_patches, types="mm_token_type_ids",
    ),
    "Qwen3-VL": Tiny(
        {
            "model_type": "qwen3_vl", **_QWEN, "text_config": _text("qwen3_vl_text", **MROPE),
            "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        },
        32, 4, 16, _qwen_patches, types="mm_token_type_ids",
    ),
    "Qwen3.5": Tiny(
        {
            "model_type": "qwen3_5", **_QWEN,
            "text_config": _text(
                "qwen3_5_text", linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
                linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"] * 2,
                rope_parameters={**MROPE["rope_parameters"], "partial_rotary_factor": 1.0, "mrope_interleaved": True},
            ),
            "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
        },
        32, 4, 16, _qwen_patches, types="mm_token_type_ids",
    ),
    "Gemma 3": Tiny(
        {
            "model_type": "gemma3", "image_token_index": IMAGE, "mm_tokens_per_image": 4, "vision_config": _siglip(),
            "text_config": _text(
                "gemma3_text", sliding_window=6, query_pre_attn_scalar=8,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
        },
        16, 2, 4, _whole, types="token_type_ids",
    ),
    "Mistral 3": Tiny(
        {
            "model_type": "mistral3", "image_token_index": IMAGE, "spatial_merge_size": 2, "vision_config": _PIXTRAL,
            "text_config": _text("mistral"), "vision_feature_layer": -1,
        },
        16, 2, 4, _sized,
    ),
    "Pixtral": Tiny(
        {
            "model_type": "llava", "vision_config": _PIXTRAL, "text_config": _text("mistral"), **_COMMON,
            "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        },
        16, 4, 16, _sized,
    ),
    "LFM2-VL": Tiny(
        {
            "model_type": "lfm2_vl", **_COMMON, "downsample_factor": 2, "projector_hidden_size": 32,
            "vision_config": {
                **{k: v for k, v in VISION.items() if k != "image_size"},
                "model_type": "siglip2_vision_model", "num_patches": 16,
            },
            "text_config": _text("lfm2", layer_types=["conv", "full_attention", "conv", "full_attention"]),
        },
        16, 2, 4, _flat_patches,
    ),
    "PaliGemma": Tiny(
        {
            "model_type": "paligemma", "image_token_index": IMAGE, "projection_dim": WIDTH,
            "vision_config": _siglip(patch_size=8, projection_dim=WIDTH, vision_use_head=False),
            "text_config": _text("gemma"),
        },
        16, 2, 4, _whole, types="token_type_ids",
    ),
}  # fmt: skip


def placeholders(batch: dict[str, Tensor]) -> Tensor:
    """Where the visual tokens of the one sample are."""
    return (batch["input_ids"][0] == IMAGE).nonzero().flatten()


@torch.no_grad()
def naive_states(model: Any, batch: dict[str, Tensor]) -> Sequence[Tensor]:
    """What goes into layers 1 to L, [T, D] each, then what the last norm makes of the last one's output.

    From ``output_hidden_states``, which has what layers give; Qwen3-VL adds to that between layers.
    """
    states = [state[0] for state in model(**batch, use_cache=False, output_hidden_states=True).hidden_states]
    if model.config.model_type == "qwen3_vl":
        features = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).deepstack_features
        for h, added in enumerate(features, start=1):
            states[h] = states[h].clone()
            states[h][placeholders(batch)] += torch.cat(list(added)).view(-1, states[h].shape[-1])
    return states
