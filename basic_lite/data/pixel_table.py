"""A picture's bytes to pixel values: what the vision encoder's image processor gives, bit for bit, in less time.

A processor of CLIP or SigLIP resizes a square picture, and then each byte becomes a number that depends on the byte and
its channel alone. In NumPy, as transformers does that, it takes longer than decoding a JPEG of 640 × 480. Here it is
looked up in a table that the processor itself has filled.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from basic_lite.model.frontend import input_side, resampling


@dataclass(frozen=True, eq=False)
class PixelTable:
    """What a processor makes of a square picture: resized to ``side``², then channel c's byte b is ``values[c, b]``."""

    side: int
    resample: Image.Resampling
    values: np.ndarray  # [3, 256] float32

    def fill(self, image: Image.Image, out: torch.Tensor) -> None:
        """Write a square RGB picture's pixel values into ``out`` [3, side, side] float32."""
        size = (self.side, self.side)
        resized = image if image.size == size else image.resize(size, self.resample)
        for band, values, place in zip(resized.split(), self.values, out.numpy(), strict=True):
            # Bytes are never out of range. With another mode NumPy copies the result once more.
            np.take(values, np.asarray(band), out=place, mode="clip")


def processed(image: Image.Image, image_processor: Any) -> torch.Tensor:
    """Pixel values [3, h, w] float32 by the processor itself."""
    values: torch.Tensor = image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    return values.to(torch.float32)


@lru_cache(maxsize=4)
def table_of(image_processor: Any) -> PixelTable | None:
    """The processor's table, made and tried once; None for a processor that does something else with a picture."""
    side = input_side(image_processor)
    if side is None:
        return None
    cells, columns = side * side, []
    for start in range(0, 256, cells):
        grey = (start + np.arange(cells)).clip(max=255).astype(np.uint8).reshape(side, side)
        values = processed(Image.fromarray(grey).convert("RGB"), image_processor)
        if values.shape != (3, side, side):
            return None
        columns.append(values.flatten(1)[:, : 256 - start])
    table = PixelTable(side, resampling(image_processor), torch.cat(columns, dim=1).numpy())
    shown = np.random.default_rng(0).integers(0, 256, (2 * side + 1, 2 * side + 1, 3), dtype=np.uint8)
    probe, out = Image.fromarray(shown), torch.empty(3, side, side)
    table.fill(probe, out)
    return table if out.equal(processed(probe, image_processor)) else None
