"""What llama.cpp does otherwise than the training did, in words and measured."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration

from basic_lite.data.pixels import fit
from basic_lite.tools.export.gguf.weights import GgufType

_PAD_COLOUR = (122, 116, 104)
"""What llama.cpp pads pictures with for a LLaVA projector, whatever the tower."""


def notes_of(config: LlavaConfig, preprocessor: dict[str, Any], kind: GgufType) -> list[str]:
    """Sentences on the pictures, the tower and the projector."""
    notes = []
    vision = config.vision_config
    if vision.model_type.startswith("clip"):
        notes.append(
            "llama.cpp has a bug with CLIP towers (ggml-org/llama.cpp issue 25814): the class token goes to the wrong "
            "end, positions shift, and the first patch is lost. Answers differ until the version you run has the fix."
        )
    if preprocessor.get("do_pad"):
        mean = tuple(int(255 * value) for value in preprocessor["image_mean"])
        notes.append(
            "llama.cpp resizes a picture and then pads it to a square, the training padded and then resized: pictures "
            "that aren't square differ along the border of the padding."
        )
        if mean != _PAD_COLOUR:
            notes.append(f"llama.cpp pads with the colour {_PAD_COLOUR}, the training padded with {mean}.")
    if preprocessor.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
        name = Image.Resampling(preprocessor["resample"]).name.lower()
        notes.append(f"llama.cpp resizes pictures bicubically, the training did it by {name}.")
    notes.append(
        "llama.cpp decodes JPEG with code of its own (stb_image), and rounds otherwise than newer versions of Pillow "
        "when it resizes tall pictures: their pixels differ a little."
    )
    notes.append("llama.cpp's GELU in the projector is the tanh form, the training's is exact: a small drift.")
    if vision.hidden_act == "gelu":
        notes.append("The same holds for the GELU in the vision tower.")
    notes.append("llama.cpp doesn't turn a photo as its EXIF data says, the training did.")
    if kind == "q8_0":
        notes.append("q8_0 rounds the language model's matrices to 8 bits; vision tower and projector stay f16.")
    return notes


def as_llama_cpp_sees(image: Image.Image, side: int, padded: bool) -> Image.Image:
    """A picture as llama.cpp resizes it for a LLaVA projector.

    Args:
        padded: whether the mmproj file lacks grid points, so that the picture is padded to a square.
    """
    image = image.convert("RGB")
    if not padded:
        return _across_first(image, side, side)
    scale = np.float32(side) / np.float32(max(image.size))
    width, height = (min(math.ceil(float(np.float32(length) * scale)), side) for length in image.size)
    square = Image.new("RGB", (side, side), _PAD_COLOUR)
    square.paste(_across_first(image, width, height), ((side - width) // 2, (side - height) // 2))
    return square


def _across_first(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resized bicubically, across and then down. Pillow takes the cheaper order, and rounds in between."""
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def picture_difference(images: Sequence[Image.Image], image_processor: Any, padded: bool) -> float:
    """Mean absolute difference in grey levels (0 to 255) between llama.cpp's pixels and the training's."""
    side = int(image_processor.size["height"])
    std = torch.tensor(image_processor.image_std).view(3, 1, 1)
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    differences = []
    for image in images:
        fitted = fit(image.convert("RGB"), "pad" if padded else "square", image_processor)
        ours = image_processor(images=[fitted], return_tensors="pt")["pixel_values"][0] * std + mean  # [3, h, w]
        theirs = torch.from_numpy(np.array(as_llama_cpp_sees(image, side, padded))).permute(2, 0, 1) / 255
        differences.append(float((ours - theirs).abs().mean()) * 255)
    return sum(differences) / len(differences)


@torch.no_grad()
def gelu_difference(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> float:
    """How far the projector's output moves with llama.cpp's GELU, relative to the output's size.

    Args:
        pixel_values: [n, 3, h, w].
    """
    config, projector = model.config, model.model.multi_modal_projector
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    features = states[config.vision_feature_layer]  # [n, N or N + 1, D_vision]
    if config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    first = projector.linear_1(features)
    exact = projector.linear_2(functional.gelu(first))
    other = projector.linear_2(functional.gelu(first, approximate="tanh"))
    return float((other - exact).norm() / exact.norm())
