"""Which part of which picture each visual token stands for.

A view is a block of consecutive visual tokens that lie over some pixels row by row: a picture, a tile of it, or all
tiles put together. Its pixels are those that the vision tower gets, so nothing has to be known of how a processor
resizes, pads and crops. The tokens' order is each family's own; the tests change a patch and see which token moves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class View:
    """A block of visual tokens, row by row.

    Attributes:
        pixels: [3, H, W], as the vision tower gets them, all of them below the block.
        part: what of a picture it is; empty: all of it.
        before: visual tokens before it that lie nowhere, such as CLIP's class token.
    """

    pixels: Tensor
    rows: int
    columns: int
    part: str = ""
    before: int = 0


# The views of a batch, in the order of its visual tokens, from the model's configuration.
Views = Callable[[Any, Batch], list[View]]


def first_tokens(views: Sequence[View], tokens: int) -> list[int] | None:
    """Where each view's tokens begin among the ``tokens`` of the batch; None: they don't fill them."""
    if any(view.before < 0 for view in views):  # LLaVA's `default` without a class token drops a patch
        return None
    firsts, at = [], 0
    for view in views:
        firsts.append(at + view.before)
        at = firsts[-1] + view.rows * view.columns
    return firsts if at == tokens else None


def squares(side: int, pixels: Tensor, before: int = 0) -> list[View]:
    """Whole pictures [n, 3, H, W] under ``side`` × ``side`` tokens each."""
    return [View(one, side, side, before=before) for one in pixels]


def tiles(side: int, pixels: Tensor) -> list[View]:
    """Tiles of pictures [n, 3, H, W], each by itself: how they lie in the picture isn't in the model's inputs."""
    count = len(pixels)
    return [View(one, side, side, f"part {n} of {count}" if count > 1 else "") for n, one in enumerate(pixels, start=1)]


def sized(batch: Batch, pixels_a_token: int) -> list[View]:
    """Pictures of their own sizes, padded to one: [n, 3, H, W] and ``image_sizes`` [n, 2]."""
    found = []
    for one, (height, width) in zip(batch["pixel_values"], batch["image_sizes"].tolist(), strict=True):
        found.append(View(one[:, :height, :width], height // pixels_a_token, width // pixels_a_token))
    return found


def merged_patches(config: Any, batch: Batch) -> list[View]:
    """Qwen's: flat patches [P, 3 · frames · p · p], those that become one token beside one another."""
    vision, found, at = config.vision_config, [], 0
    merge, size = vision.spatial_merge_size, vision.patch_size
    for _, height, width in batch["image_grid_thw"].tolist():
        rows, columns = height // merge, width // merge
        flat = batch["pixel_values"][at : at + height * width]
        at += height * width
        cut = flat.view(rows, columns, merge, merge, 3, -1, size, size)[:, :, :, :, :, 0]  # two equal frames
        found.append(View(cut.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * size, width * size), rows, columns))
    return found


def flat_tiles(config: Any, batch: Batch) -> list[View]:
    """LFM2-VL's: flat patches [tiles, P, p · p · 3] row by row, and ``spatial_shapes`` [tiles, 2]."""
    factor, size, found = config.downsample_factor, config.vision_config.patch_size, []
    shapes = batch["spatial_shapes"].tolist()
    for n, (flat, (height, width)) in enumerate(zip(batch["pixel_values"], shapes, strict=True), start=1):
        cut = flat[: height * width].view(height, width, size, size, 3)
        pixels = cut.permute(4, 0, 2, 1, 3).reshape(3, height * size, width * size)
        # An odd number of patches is padded by one.
        part = f"part {n} of {len(shapes)}" if len(shapes) > 1 else ""
        found.append(View(pixels, -(-height // factor), -(-width // factor), part))
    return found


def whole_and_tiles(config: Any, batch: Batch) -> list[View]:
    """LLaVA-NeXT's and OneVision's: the picture made small, then its tiles as one picture without their padding.

    ``pixel_values`` [n, 1 + tiles, 3, H, W]. The rows that end lines are no visual tokens here.
    """
    return list(_whole_and_tiles(config, batch))


def _whole_and_tiles(config: Any, batch: Batch) -> Iterator[View]:
    vision, counts = config.vision_config, batch.get("batch_num_images")
    side = vision.image_size // vision.patch_size
    # Several pictures in one conversation aren't cut, in OneVision.
    cut = [True] * len(batch["pixel_values"]) if counts is None else [n == 1 for n in counts.tolist() for _ in range(n)]
    for pixels, size, is_cut in zip(batch["pixel_values"], batch["image_sizes"].tolist(), cut, strict=True):
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
        if not is_cut:
            yield View(pixels[0], side, side)
            continue
        yield View(pixels[0], side, side, "made small")
        kept = unpad_image(torch.arange(down * across * side**2).view(1, down * side, across * side), size)[0]
        (top, left), (bottom, right) = (divmod(int(kept[end, end]), across * side) for end in (0, -1))
        height, width = pixels.shape[-2:]
        whole = pixels[1 : 1 + down * across].view(down, across, 3, height, width)
        whole = whole.permute(2, 0, 3, 1, 4).reshape(3, down * height, across * width)
        y, x = height // side, width // side
        shown = whole[:, top * y : (bottom + 1) * y, left * x : (right + 1) * x]
        rows, columns = _scaled(config, kept.shape[0], kept.shape[1], side)
        yield View(shown, rows, columns, "in tiles")


def _scaled(config: Any, rows: int, columns: int, side: int) -> tuple[int, int]:
    """OneVision scales large grids down."""
    most = getattr(config, "vision_aspect_ratio", None)
    if most is None:
        return rows, columns
    ratio = (rows * columns / (int(most.removeprefix("anyres_max_")) * side**2)) ** 0.5
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
