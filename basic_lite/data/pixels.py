"""Images to pixel values: fitted to a square, handed to the vision encoder's own processor (PIL, no torchvision)."""

from typing import Any

import torch
from PIL import Image

from basic_lite.data.images import ImageRef, open_image
from basic_lite.data.pixel_table import TABLE, looked_up, processed, table_of
from basic_lite.model.frontend import input_side, mean_colour, resampling
from basic_lite.recipe.schema import ImageFit

# What is decoded at a reduced size keeps so many times the encoder's side, so that resizing still averages.
DRAFT_SIDES = 2

# Pixels of the square around a picture up to which it is made whole; of one that is longer than 4 times its breadth.
_MOST_PIXELS, _MOST_PIXELS_OF_STRIP = 100_000_000, 16_000_000


def fit(image: Image.Image, how: ImageFit, image_processor: Any) -> Image.Image:
    """An RGB image made square, as `data.image_fit` says, before the processor resizes it.

    square: resized, the aspect ratio is lost, nothing is cropped. pad: padded with the mean colour, the
    picture in the middle (LLaVA-1.5's `expand2square`). A large square that would be mostly padding is never made: the
    picture is resized along its length first.
    """
    width, height = image.size
    if width == height:
        return image
    if how == "pad":
        length, final = max(width, height), input_side(image_processor)
        if final is not None and _wasteful(width, height):
            return _padded_small(image, length, final, image_processor)
        return _padded(image, (length, length), mean_colour(image_processor))
    side = input_side(image_processor) or max(width, height)
    return image.resize((side, side), resampling(image_processor))


def _wasteful(width: int, height: int) -> bool:
    """Whether the square around a picture takes much memory for what is in it: a strip, or a very large picture."""
    length, breadth = max(width, height), min(width, height)
    return length * length > (_MOST_PIXELS_OF_STRIP if length > 4 * breadth else _MOST_PIXELS)


def _padded(image: Image.Image, size: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a larger one."""
    whole = Image.new("RGB", size, colour)
    whole.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return whole


def _padded_small(image: Image.Image, length: int, final: int, image_processor: Any) -> Image.Image:
    """What the processor's resizing makes of the padded square, ``final`` a side, without making the square.

    A resizing is one along each axis, and along the picture's length padding changes nothing. So that one comes before
    the padding. Of 255 levels of brightness a pixel is 1 off at most: PIL rounds between the two, in its own order.
    """
    colour, how = mean_colour(image_processor), resampling(image_processor)
    wide = image.width == length
    strip = image.resize((final, image.height) if wide else (image.width, final), how)
    return _padded(strip, (final, length) if wide else (length, final), colour).resize((final, final), how)


def pixels(images: tuple[ImageRef, ...], image_processor: Any, how: ImageFit, *, draft: bool = False) -> torch.Tensor:
    """Pixel values [n, 3, h, w] float32 of a record's images, in their order.

    Args:
        draft: as `data.jpeg_draft`.

    Raises:
        BadImage: one of them can't be read.
    """
    found = pixel_parts(images, image_processor, how, draft=draft)
    return looked_up(found["pixel_values"], found[TABLE]) if TABLE in found else found["pixel_values"]


def pixel_parts(
    images: tuple[ImageRef, ...], image_processor: Any, how: ImageFit, *, draft: bool = False
) -> dict[str, torch.Tensor]:
    """A record's images as a training sample has them.

    ``pixel_values`` [n, h, w, 3] uint8 and ``pixel_table`` [3, 256], from which ``on_device`` makes the values. Of a
    processor without such a table: ``pixel_values`` [n, 3, h, w] float32.

    Args:
        draft: as `data.jpeg_draft`.

    Raises:
        BadImage: one of them can't be read.
    """
    side = input_side(image_processor) if draft else None
    least = None if side is None else DRAFT_SIDES * side
    fitted = [fit(open_image(image, least=least), how, image_processor) for image in images]
    table = table_of(image_processor)
    if table is None:
        return {"pixel_values": torch.stack([processed(image, image_processor) for image in fitted])}
    out = torch.empty(len(fitted), table.side, table.side, 3, dtype=torch.uint8)
    for image, place in zip(fitted, out.numpy(), strict=True):
        place[...] = table.pixel_bytes(image)
    return {"pixel_values": out, TABLE: table.values}
