"""Pictures from small files that would take gigabytes: refused before that, or read within the bound."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_lite.data import room
from basic_lite.data.images import ImageRef, open_image, require_whole
from basic_lite.data.pixels import pixels
from basic_lite.data.problems import BadImage
from basic_lite.data.room import to_rgb
from tests.support.data import processor
from tests.support.fuzzing import soon_or_one_error

SIDE = 13_300  # squared, just below what Pillow itself refuses
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], bits: int, colour: int, extra: bytes = b"", *, rows: int | None = None) -> bytes:
    """A PNG of zeros; ``rows``: how many it really has."""
    line = bytes((size[0] * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 7) // 8 + 1)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(size[1] if rows is None else rows)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def float_tiff(side: int) -> bytes:
    """A TIFF of one float32 channel, all in one strip."""
    data = zlib.compress(bytes(side * side * 4), 1)
    tags = [(256, side), (257, side), (258, 32), (259, 8), (262, 1), (273, 8), (277, 1), (278, side), (279, len(data)),
            (339, 3)]  # fmt: skip
    at = 8 + len(data) + len(data) % 2
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", at) + data).ljust(at, b"\0") + struct.pack("<H", len(tags)) + table + bytes(4)


PALETTE = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\x10\x20")


def test_a_small_file_takes_no_gigabytes(tmp_path: Path) -> None:
    """21 kB: 177 megapixels of a palette with transparency. Memory and seconds are measured."""
    data = png((SIDE, SIDE), 1, 3, PALETTE)
    assert len(data) < 30_000
    with soon_or_one_error(tmp_path):
        assert pixels((ImageRef("a", blob=data),), processor(), "pad").shape[0] == 1


@pytest.mark.soak
@pytest.mark.parametrize("turned", [False, True])
def test_a_photograph_of_108_megapixels(tmp_path: Path, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    out = io.BytesIO()
    Image.new("RGB", (12_000, 9_000), (9, 8, 7)).save(out, "JPEG", exif=exif)
    with soon_or_one_error(tmp_path):
        assert pixels((ImageRef("a", blob=out.getvalue()),), processor(), "pad").shape[0] == 1


@pytest.mark.soak
def test_a_large_float_tiff(tmp_path: Path) -> None:
    with soon_or_one_error(tmp_path):
        assert open_image(ImageRef("a", blob=float_tiff(9_000))).size == (9_000, 9_000)


def of_kind(kind: str, size: tuple[int, int], **settings: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, kind, **settings)
    return out.getvalue()


def progressive() -> bytes:
    """The head of a progressive JPEG of 16,000 × 10,000 without subsampling."""
    data = of_kind("JPEG", (16, 16), progressive=True, subsampling=0)
    return data.replace(struct.pack(">BHH", 8, 16, 16), struct.pack(">BHH", 8, 10_000, 16_000), 1)


@pytest.mark.parametrize(
    "data",
    [
        png((SIDE, SIDE), 16, 0, rows=1),
        png((SIDE, SIDE), 8, 6, rows=1),
        # Pillow's table of lines alone takes 8 bytes for each.
        png((1, 150_000_000), 1, 0, rows=1),
        progressive(),
        of_kind("WEBP", (9, 9), lossless=True)[:21] + struct.pack("<I", 13_299 | 13_299 << 14)
        + of_kind("WEBP", (9, 9), lossless=True)[25:],
    ],
    ids=["grey of 16 bits", "rgba", "lines", "progressive", "webp"],
)  # fmt: skip
def test_what_has_no_room_is_refused_before_it_is_decoded(data: bytes, tmp_path: Path) -> None:
    for read in (open_image, require_whole):
        with soon_or_one_error(tmp_path), pytest.raises(BadImage, match=r"would take [1-3]\.\d GB"):
            read(ImageRef("a", blob=data))


def test_one_that_would_be_turned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there twice then. The check before a run and the reading in it agree."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = of_kind("JPEG", (400, 300), exif=exif)
    monkeypatch.setattr(room, "MOST_BYTES", 900_000)
    for read in (open_image, require_whole):
        with pytest.raises(BadImage, match="would take"):
            read(ImageRef("a", blob=data))
    assert open_image(ImageRef("a", blob=of_kind("JPEG", (400, 300)))).size == (400, 300)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("size", [(37, 23), (500, 1), (1, 500)])
def test_in_pieces_it_is_the_same(mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        grey = noise.integers(0, 60_000, size[::-1]).astype(kind)
        if mode == "F":
            grey[0, 0] = np.nan
        image = Image.fromarray(grey)
    else:
        image = Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
        if mode == "P":
            image.info["transparency"] = 3
    whole = to_rgb(image)
    monkeypatch.setattr(room, "_TILE", 64)
    assert whole.mode == "RGB" and whole.tobytes() == to_rgb(image).tobytes()
