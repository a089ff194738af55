"""A picture's bytes to pixel values: what the vision encoder's image processor gives, bit for bit, in less time.

A processor of CLIP or SigLIP resizes a square picture, and then each byte becomes a number that depends on the byte and
its channel alone. In NumPy, as transformers does that, it takes longer than decoding a JPEG of 640 × 480. Here it is
looked up in a table that the processor itself has filled. In training the bytes travel, a quarter of the numbers' size,
and the device that trains looks them up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from basic_lite.model.frontend import input_side, resampling
from basic_lite.to_device import to_device

# What a batch holds beside ``pixel_values`` where those are still bytes.
TABLE = "pixel_table"


@dataclass(frozen=True, eq=False)
class PixelTable:
    """What a processor makes of a square picture: resized to ``side``², then channel c's byte b is ``values[c, b]``."""

    side: int
    resample: Image.Resampling
    values: Tensor  # [3, 256] float32

    def pixel_bytes(self, image: Image.Image) -> np.ndarray:
        """A square RGB picture's bytes [side, side, 3]."""
        size = (self.side, self.side)
        return np.asarray(image if image.size == size else image.resize(size, self.resample))


def looked_up(pixel_bytes: Tensor, values: Tensor) -> Tensor:
    """Pixel values [I, 3, h, w] float32 of bytes [I, h, w, 3]; ``values`` [3, 256] is a table's, on the same device."""
    bands = pixel_bytes.unbind(-1)
    found = [row.index_select(0, band.flatten().int()).view_as(band) for row, band in zip(values, bands, strict=True)]
    return torch.stack(found, dim=1)


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A host batch on a device as ``to_device`` brings it, bytes of pictures as pixel values there."""
    there = to_device(batch, device)
    if (values := there.pop(TABLE, None)) is not None:
        there["pixel_values"] = looked_up(there["pixel_values"], values)
    return there


def processed(image: Image.Image, image_processor: Any) -> Tensor:
    """Pixel values [3, h, w] float32 by the processor itself."""
    values: Tensor = image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
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
    table = PixelTable(side, resampling(image_processor), torch.cat(columns, dim=1))
    shown = np.random.default_rng(0).integers(0, 256, (2 * side + 1, 2 * side + 1, 3), dtype=np.uint8)
    probe = Image.fromarray(shown)
    mine = looked_up(torch.tensor(table.pixel_bytes(probe))[None], table.values)[0]
    return table if mine.equal(processed(probe, image_processor)) else None
