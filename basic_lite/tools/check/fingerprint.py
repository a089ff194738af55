"""What a picture looks like in a few bytes, so that copies are known again that were resized or saved anew."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from basic_lite.data.digests import picture_digest
from basic_lite.data.images import ImageRef, open_small

# Pixels a side that are decoded at least.
_DECODED = 72
HASH_BYTES, THUMB_SIDE = 16, 8
# Levels of grey (of 255) that a neighbour must be brighter by: less is noise of saving.
_MARGIN = 3


class Fingerprint(NamedTuple):
    """One picture.

    Attributes:
        digest: of its file (see ``picture_digest``): equal for copies.
        hash: [16] uint8, the difference hash: for 8 × 8 places whether the next one to the right, and below, is
            brighter (D. Buchanan's and N. Krawetz's dHash, both ways).
        thumb: [192] uint8, 8 × 8 pixels in RGB.
        width, height: in pixels, upright.
        span: levels of 255 between the darkest and the brightest place, in the colour where they differ most.
    """

    digest: bytes
    hash: NDArray[np.uint8]
    thumb: NDArray[np.uint8]
    width: int
    height: int
    span: int


def fingerprint(image: ImageRef) -> Fingerprint:
    """Read a picture whole, and say what it looks like.

    Raises:
        BadImage, OSError: it can't be read.
    """
    small, (width, height) = open_small(image, _DECODED)
    grey = np.asarray(small.convert("L").resize((9, 9), Image.Resampling.BOX)).astype(np.int16)
    here = grey[:8, :8] + _MARGIN
    bits = np.concatenate([grey[:8, 1:] > here, grey[1:, :8] > here])
    thumb = np.asarray(small.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)).reshape(-1)
    span = int(np.ptp(np.asarray(small).reshape(-1, 3), axis=0).max())
    return Fingerprint(picture_digest(image), np.packbits(bits), thumb.copy(), width, height, span)
