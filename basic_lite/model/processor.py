"""The vision encoder's image processor, and what it says about colours and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

# Not from transformers itself: 5.17 hands out a placeholder there where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from basic_lite.errors import UserError
from basic_lite.model.unreadable import unreadable


def load_image_processor(name: str | Path, key: str = "model.vision") -> Any:
    """The image processor of a checkpoint, always its PIL version (torchvision resizes in another way).

    Args:
        name: folder or hub name.
        key: recipe key that names it.

    Raises:
        UserError: there is none at that place, or it has no PIL version.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(str(name), backend="pil")
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise unreadable(str(name), key, error, what="image processor (preprocessor_config.json)") from error
    if getattr(processor, "backend", "pil") != "pil":
        raise UserError(
            f"{key}: {type(processor).__name__} of {name} has no PIL version, and torchvision is not used here; "
            f"choose a CLIP or SigLIP encoder in {key}"
        )
    return processor


def mean_colour(processor: Any) -> tuple[int, int, int]:
    """The processor's mean as 8-bit RGB: padding of this colour is about 0 after normalisation."""
    mean = getattr(processor, "image_mean", None)
    values = list(mean) if isinstance(mean, (list, tuple)) else [0.5 if mean is None else float(mean)] * 3
    r, g, b = (int(value * 255) for value in values)
    return r, g, b


def input_side(processor: Any) -> int | None:
    """Side in pixels of the square that the processor resizes to; None where it doesn't say."""
    size = dict(getattr(processor, "size", None) or {})
    return size.get("shortest_edge") or size.get("height")


def resampling(processor: Any) -> Image.Resampling:
    """The filter that the processor resizes with; bicubic where it doesn't say."""
    chosen = getattr(processor, "resample", None)
    return Image.Resampling.BICUBIC if chosen is None else Image.Resampling(chosen)
