"""Which part of which picture each visual token stands for.

A view is a block of consecutive visual tokens that lie over some pixels row by row: a picture, a tile of it, or all
tiles put together. Its pixels are those that the vision tower gets, so nothing has to be known of how a processor
resizes, pads and crops. The tokens' order is each family's own; the tests change a patch and see which token moves.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
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
        picture: the number of its picture among those of the batch, from 0.
        part: what of a picture it is; empty: all of it.
        before: visual tokens before it that lie nowhere, such as CLIP's class token.
    """

    pixels: Tensor
    rows: int
    columns: int
    picture: int
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
    return [View(one, side, side, n, before=before) for n, one in enumerate(pixels)]


@dataclass(frozen=True)
class Run:
    """Placeholders that follow one another in a text.

    Attributes:
        before, after: the tokens beside them; None: the text begins or ends there.
        count: how many they are.
    """

    before: int | None
    count: int
    after: int | None


def runs(config: Any, batch: Batch) -> list[Run]:
    """The runs of placeholders in ``input_ids`` [B, T], row by row."""
    found = []
    for row in batch["input_ids"].tolist():
        at = 0
        for held, run in groupby(row, key=lambda token: token == config.image_token_id):
            count = len(list(run))
            end = at + count
            if held:
                found.append(Run(row[at - 1] if at else None, count, row[end] if end < len(row) else None))
            at = end
    return found


def pictures_of(tokens: Sequence[int], found: Sequence[Run], last: Sequence[bool]) -> list[int]:
    """The number of each tile's picture, from 0. All are 0 where the tiles don't fill the runs.

    Args:
        tokens: of each tile.
        found: the batch's runs of placeholders.
        last: whether a picture ends with this run.
    """
    starts, ends = [0, *accumulate(tokens)], list(accumulate(run.count for run in found))
    bounds = [end for end, is_last in zip(ends, last, strict=True) if is_last]
    if starts[-1:] != ends[-1:] or not set(bounds) <= set(starts):
        return [0] * len(tokens)
    return [bisect_right(bounds, start) for start in starts[:-1]]


def part_names(pictures: Sequence[int]) -> list[str]:
    """The names of tiles, numbered within their picture. Empty: it is the picture's only one."""
    counts, seen = Counter(pictures), Counter[int]()
    names = []
    for picture in pictures:
        seen[picture] += 1
        names.append(f"part {seen[picture]} of {counts[picture]}" if counts[picture] > 1 else "")
    return names


def tiles(side: int, pixels: Tensor, found: Sequence[Run], last: Sequence[bool]) -> list[View]:
    """Tiles of pictures [n, 3, H, W], each by itself: how they lie in the picture isn't in the model's inputs.

    Args:
        found, last: see ``pictures_of``.
    """
    pictures = pictures_of([side**2] * len(pixels), found, last)
    rest = zip(pixels, pictures, part_names(pictures), strict=True)
    return [View(one, side, side, picture, part) for one, picture, part in rest]


def sized(batch: Batch, pixels_a_token: int) -> list[View]:
    """Pictures of their own sizes, padded to one: [n, 3, H, W] and ``image_sizes`` [n, 2]."""
    found = []
    sizes = batch["image_sizes"].tolist()
    for n, (one, (height, width)) in enumerate(zip(batch["pixel_values"], sizes, strict=True)):
        found.append(View(one[:, :height, :width], height // pixels_a_token, width // pixels_a_token, n))
    return found


def merged_patches(config: Any, batch: Batch) -> list[View]:
    """Qwen's: flat patches [P, 3 · frames · p · p], those that become one token beside one another."""
    vision, found, at = config.vision_config, [], 0
    merge, size = vision.spatial_merge_size, vision.patch_size
    for n, (_, height, width) in enumerate(batch["image_grid_thw"].tolist()):
        rows, columns = height // merge, width // merge
        flat = batch["pixel_values"][at : at + height * width]
        at += height * width
        cut = flat.view(rows, columns, merge, merge, 3, -1, size, size)[:, :, :, :, :, 0]  # two equal frames
        found.append(View(cut.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * size, width * size), rows, columns, n))
    return found


def flat_tiles(config: Any, batch: Batch) -> list[View]:
    """LFM2-VL's: flat patches [tiles, P, p · p · 3] row by row, and ``spatial_shapes`` [tiles, 2].

    One token, ``<|image_end|>``, follows each picture, and so the last one; others stand between a picture's tiles.
    """
    factor, size = config.downsample_factor, config.vision_config.patch_size
    shapes, found = batch["spatial_shapes"].tolist(), runs(config, batch)
    # An odd number of patches is padded by one.
    grids = [(-(-height // factor), -(-width // factor)) for height, width in shapes]
    last = [run.after == found[-1].after for run in found]
    pictures = pictures_of([rows * columns for rows, columns in grids], found, last)
    views, parts = [], part_names(pictures)
    for n, (flat, (height, width)) in enumerate(zip(batch["pixel_values"], shapes, strict=True)):
        cut = flat[: height * width].view(height, width, size, size, 3)
        pixels = cut.permute(4, 0, 2, 1, 3).reshape(3, height * size, width * size)
        views.append(View(pixels, *grids[n], pictures[n], parts[n]))
    return views


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
    pictures = zip(batch["pixel_values"], batch["image_sizes"].tolist(), cut, strict=True)
    for n, (pixels, size, is_cut) in enumerate(pictures):
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
        if not is_cut:
            yield View(pixels[0], side, side, n)
            continue
        yield View(pixels[0], side, side, n, "made small")
        kept = unpad_image(torch.arange(down * across * side**2).view(1, down * side, across * side), size)[0]
        (top, left), (bottom, right) = (divmod(int(kept[end, end]), across * side) for end in (0, -1))
        height, width = pixels.shape[-2:]
        whole = pixels[1 : 1 + down * across].view(down, across, 3, height, width)
        whole = whole.permute(2, 0, 3, 1, 4).reshape(3, down * height, across * width)
        y, x = height // side, width // side
        shown = whole[:, top * y : (bottom + 1) * y, left * x : (right + 1) * x]
        rows, columns = _scaled(config, kept.shape[0], kept.shape[1], side)
        yield View(shown, rows, columns, n, "in tiles")


def _scaled(config: Any, rows: int, columns: int, side: int) -> tuple[int, int]:
    """OneVision scales large grids down."""
    most = getattr(config, "vision_aspect_ratio", None)
    if most is None:
        return rows, columns
    ratio = (rows * columns / (int(most.removeprefix("anyres_max_")) * side**2)) ** 0.5
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
