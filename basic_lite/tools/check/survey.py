"""One pass over the records: their texts, and each of their pictures once."""

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from basic_lite.data.digests import DIGEST_BYTES
from basic_lite.data.images import ImageRef, picture_key
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Records
from basic_lite.tools.check.fingerprint import HASH_BYTES, THUMB_SIDE, Fingerprint, fingerprint
from basic_lite.tools.check.near import alike
from basic_lite.tools.check.texts import Texts

# Pictures in memory or waiting at a time.
_AT_ONCE = 512
# Levels of 255: a picture whose places differ by less looks of one colour.
FLAT = 16


class Place(NamedTuple):
    """Where a picture was first seen."""

    source: int  # 0: training data; 1: the file for evaluation
    record: int
    number: int  # of the record's pictures

    def image(self, sources: Sequence[Records]) -> ImageRef:
        """The picture; ``sources``: the records that places are in."""
        found: ImageRef = sources[self.source][self.record].images[self.number]
        return found


@dataclass
class Pictures:
    """Each picture once: files under several names are one only where these are links.

    Attributes:
        places: where each was first seen.
        problems: of those that can't be read, by their number.
        numbers: by the pictures' keys (``picture_key``).
    """

    places: list[Place] = field(default_factory=list)
    problems: dict[int, BadImage] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    # Of the readable ones in a row, 233 bytes each: digests, hashes, thumbnails, sizes, spans.
    _digests: bytearray = field(default_factory=bytearray)
    _hashes: bytearray = field(default_factory=bytearray)
    _thumbs: bytearray = field(default_factory=bytearray)
    _sizes: "array[int]" = field(default_factory=lambda: array("i"))
    _spans: bytearray = field(default_factory=bytearray)
    _of: "array[int]" = field(default_factory=lambda: array("q"))

    def keep(self, number: int, one: Fingerprint | BadImage) -> None:
        """What was found of a picture."""
        if isinstance(one, BadImage):
            self.problems[number] = one
            return
        self._digests += one.digest
        self._hashes += one.hash.tobytes()
        self._thumbs += one.thumb.tobytes()
        self._sizes.extend((one.width, one.height))
        self._spans.append(one.span)
        self._of.append(number)

    @property
    def readable(self) -> NDArray[np.int64]:
        """Numbers of those that can be read [m]."""
        return np.array(self._of, dtype=np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[m, 2], width and height of the readable ones."""
        return np.array(self._sizes, dtype=np.int64).reshape(-1, 2)

    @property
    def flat(self) -> NDArray[np.int64]:
        """Numbers of those with hardly anything to see."""
        return self.readable[np.frombuffer(self._spans, dtype=np.uint8) < FLAT]

    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two labels [m] of the readable ones: equal for equal files, and equal for pictures that look alike."""
        digests = np.frombuffer(self._digests, dtype=f"V{DIGEST_BYTES}")
        _, chosen, kind = np.unique(digests, return_index=True, return_inverse=True)
        same = chosen[kind]
        chosen = np.sort(chosen)
        hashes = np.frombuffer(self._hashes, dtype=np.uint8).reshape(-1, HASH_BYTES)[chosen]
        thumbs = np.frombuffer(self._thumbs, dtype=np.uint8).reshape(-1, 3 * THUMB_SIDE**2)[chosen]
        labels = chosen[alike(hashes, thumbs)] if len(chosen) else chosen
        return same, labels[np.searchsorted(chosen, same)]


def survey(
    records: Records,
    indices: Sequence[int],
    pictures: Pictures,
    texts: Texts | None,
    source: int,
    keys: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> set[int]:
    """Read records, and look at each picture that isn't known yet, in threads: PIL decodes without Python's lock.

    Args:
        indices: of the records.
        texts: gets the texts; None: they aren't looked at.
        source: of the pictures' places.
        keys: of each record's pictures, where they are known (``picture_key``).

    Returns:
        The numbers of the records' pictures, those that were known already too.
    """
    met: set[int] = set()
    waiting: list[tuple[int, ImageRef]] = []
    with ThreadPoolExecutor() as pool:
        for at, index in enumerate(indices):
            record = records[int(index)]
            if texts is not None:
                texts.add(int(index), record)
            for number, image in enumerate(record.images):
                key = keys[at][number] if keys is not None else picture_key(image, as_it_is=False)
                known = pictures.numbers.setdefault(key, len(pictures.places))
                if known == len(pictures.places):
                    pictures.places.append(Place(source, int(index), number))
                    waiting.append((known, image))
                met.add(known)
            if len(waiting) >= _AT_ONCE:
                _look(pool, waiting, pictures)
                waiting = []
            progress(1)
        _look(pool, waiting, pictures)
    return met


def _look(pool: ThreadPoolExecutor, waiting: list[tuple[int, ImageRef]], pictures: Pictures) -> None:
    for (number, _), one in zip(waiting, pool.map(_seen, [image for _, image in waiting]), strict=True):
        pictures.keep(number, one)


def _seen(image: ImageRef) -> Fingerprint | BadImage:
    try:
        return fingerprint(image)
    except BadImage as problem:
        return problem
    except OSError as error:
        return BadImage(f"image {image.name!r} can't be read ({error.strerror or error})", "look at the disk")
