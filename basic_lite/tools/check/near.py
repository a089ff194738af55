"""Pictures that look alike, without comparing each with each."""

import numpy as np
from numpy.typing import NDArray

from basic_lite.data.groups import join

# Bits of 128 that two pictures which look alike may differ in. Those that differ in 4 or fewer have one of the five
# bands in common, so they are compared unless more than WINDOW pictures share that band.
NEAR_BITS = 6
BANDS = ((0, 3), (3, 6), (6, 9), (9, 12), (12, 16))
# Mean levels of 255 that their thumbnails may differ by.
NEAR_LEVELS = 6
# Of those that share a band with a picture, it is compared with fewer than so many before it and after it in the order
# of their hashes.
WINDOW = 1000


def alike(hashes: NDArray[np.uint8], thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups of pictures that look alike: for each picture the number of the first one of its group.

    Memory beside the input: some 80 bytes a picture, 450 where half of them are copies, 850 where all look alike.

    Args:
        hashes: [n, 16].
        thumbs: [n, 192].

    Returns:
        [n].
    """
    count = len(hashes)
    labels = np.arange(count)
    wide = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64)  # [n, 2]
    for start, end in BANDS:
        band = np.zeros(count, dtype=np.int64)
        for byte in range(start, end):
            band = band << 8 | hashes[:, byte]
        order = np.lexsort((wide[:, 1], wide[:, 0], band))
        sorted_band = band[order]
        # Of each place, where its run of equal bands ends.
        ends = np.searchsorted(sorted_band, sorted_band, side="right")
        alive = np.arange(count)
        for step in range(1, WINDOW):
            alive = alive[alive + step < ends[alive]]
            if not len(alive):
                break
            labels = _joined(labels, order[alive], order[alive + step], wide, thumbs)
    return labels


def _joined(
    labels: NDArray[np.int64],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    wide: NDArray[np.uint64],
    thumbs: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """The labels, once pairs that look alike are in one group."""
    apart = labels[one] != labels[other]
    one, other = one[apart], other[apart]
    near = np.bitwise_count(wide[one] ^ wide[other]).sum(axis=1) <= NEAR_BITS
    one, other = one[near], other[near]
    levels = np.abs(thumbs[one].astype(np.int16) - thumbs[other]).mean(axis=1)
    pairs = np.stack([one, other], axis=1)[levels <= NEAR_LEVELS]
    if not len(pairs):
        return labels
    parent = labels.copy()
    for a, b in pairs.tolist():
        join(parent, a, b)
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent
