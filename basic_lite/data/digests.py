"""Short digests of pictures and texts: equal ones are known again wherever they lie and whatever they are called."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from basic_lite.data.images import ImageRef, locate
from basic_lite.data.problems import BadImage
from basic_lite.data.record import Record
from basic_lite.outside import open_file

DIGEST_BYTES = 16
# What is read of a large file: so many bytes at its start, in its middle and at its end.
_PIECE_BYTES = 4096


def picture_digest(image: ImageRef) -> bytes:
    """16 bytes that stand for a picture's file: for its size, and for its first, middle and last 4 KiB.

    Of a file of up to 12 KiB all bytes count. Two larger files of one size that differ only between the pieces have one
    digest, so a new one may be taken for the other. Photos hardly ever are so alike. Pictures that a program made, and
    that differ in one small place, may be: BMP, most TIFF, and JPEGs in which a square is lighter or darker. A copy
    always has the same digest.

    Raises:
        BadImage, OSError: there is no such file, or it can't be read.
    """
    if image.blob is not None:
        data = memoryview(image.buffer)
        return _of_pieces(data.nbytes, lambda start, count: bytes(data[start : start + count]))
    with open_file(Path(locate(image))) as stream:

        def read(start: int, count: int) -> bytes:
            stream.seek(start)
            return stream.read(count)

        return _of_pieces(os.fstat(stream.fileno()).st_size, read)


def digests_of(images: Sequence[ImageRef]) -> list[str]:
    """The digests of some pictures in hexadecimal digits; nothing where that of one can't be known."""
    if any(image.encoded_here for image in images):
        return []
    try:
        return [picture_digest(image).hex() for image in images]
    except (BadImage, OSError):
        return []


def _of_pieces(size_bytes: int, read: Callable[[int, int], bytes]) -> bytes:
    digest = hashlib.blake2b(size_bytes.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    if size_bytes <= 3 * _PIECE_BYTES:
        digest.update(read(0, size_bytes))
    else:
        for start in (0, (size_bytes - _PIECE_BYTES) // 2, size_bytes - _PIECE_BYTES):
            digest.update(read(start, _PIECE_BYTES))
    return digest.digest()


def text_digest(record: Record) -> bytes:
    """16 bytes that stand for what a record without pictures says."""
    said = repr(([(turn.role, turn.text) for turn in record.turns], record.answer))
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"text").digest()
