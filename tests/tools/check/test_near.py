"""Copies are found again, and what differs isn't; bands lose none that comparing all with all finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_lite.data.images import ImageRef, open_image, open_small
from basic_lite.tools.check.fingerprint import fingerprint
from basic_lite.tools.check.near import NEAR_BITS, NEAR_LEVELS, WINDOW, alike
from tests.support.data import scene


def labels_of(paths: list[Path]) -> list[int]:
    found = [fingerprint(ImageRef.of_file(path)) for path in paths]
    return alike(np.stack([one.hash for one in found]), np.stack([one.thumb for one in found])).tolist()


def test_copies_that_were_changed_a_little(tmp_path: Path) -> None:
    paths = []
    for seed in range(12):
        whole = scene(seed)
        copies = {"a.png": whole, "b.jpg": whole, "c.jpg": whole.resize((200, 150)), "d.webp": whole.resize((640, 480))}
        for name, copy in copies.items():
            paths.append(tmp_path / f"{seed}{name}")
            copy.save(paths[-1], **({"quality": 60} if name[-3:] != "png" else {}))
    assert labels_of(paths) == [4 * (at // 4) for at in range(len(paths))]


def test_what_is_alike_only_in_form_is_no_copy(tmp_path: Path) -> None:
    """Pages of one colour have one hash, and a picture that is turned, mirrored or in other colours is another."""
    whole = scene(3)
    others = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black", "red", "navy")]
    others += [whole, whole.rotate(180), whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    others.append(Image.merge("RGB", whole.split()[::-1]))
    paths = [tmp_path / f"{n}.png" for n in range(len(others))]
    for path, one in zip(paths, others, strict=True):
        one.save(path)
    assert labels_of(paths) == list(range(len(others)))


def naive(hashes: np.ndarray, thumbs: np.ndarray) -> list[int]:
    """Each with each."""
    labels = list(range(len(hashes)))
    for a in range(len(hashes)):
        for b in range(a):
            bits = np.unpackbits(hashes[a] ^ hashes[b]).sum()
            levels = np.abs(thumbs[a].astype(int) - thumbs[b]).mean()
            if bits <= NEAR_BITS and levels <= NEAR_LEVELS:
                low, high = sorted((labels[a], labels[b]))
                labels = [low if one == high else one for one in labels]
    return labels


def test_bands_find_what_comparing_all_with_all_finds() -> None:
    """Up to 4 bits a pair has a band in common whichever they are; chains of copies become one group."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (40, 16)).astype(np.uint8)
    thumbs = generator.integers(0, 256, (40, 192)).astype(np.uint8)
    for copy in range(4):
        changed = hashes[-40:].copy()
        for row in changed:
            for bit in generator.choice(128, copy + 1, replace=False):
                row[bit // 8] ^= 1 << bit % 8
        hashes, thumbs = np.concatenate([hashes, changed]), np.concatenate([thumbs, thumbs[:40]])
    order = generator.permutation(len(hashes))
    hashes, thumbs = hashes[order], thumbs[order]
    found = alike(hashes, thumbs).tolist()
    assert found == naive(hashes, thumbs) and len(set(found)) == 40


@pytest.mark.parametrize(("sharing", "found"), [(WINDOW, True), (WINDOW + 1, False)])
def test_only_so_many_pictures_with_one_band_are_compared(sharing: int, found: bool) -> None:
    """Two hashes 4 bits apart with one band in common, and all others that have it between them."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (sharing, 16)).astype(np.uint8)
    hashes[:, :4] = 1, 2, 3, 64
    hashes[0, 3], hashes[1] = 0, hashes[0]
    hashes[1, [3, 6, 9, 12]] ^= 128
    thumbs = generator.integers(0, 256, (sharing, 192)).astype(np.uint8)
    thumbs[1] = thumbs[0]
    labels = alike(hashes, thumbs)
    assert labels.tolist() == [0, 0 if found else 1, *range(2, sharing)]


def test_the_size_is_the_files_and_upright(tmp_path: Path) -> None:
    whole = scene(1, 1600, 400)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    whole.save(tmp_path / "turned.jpg", exif=exif)
    small, size = open_small(ImageRef.of_file(tmp_path / "turned.jpg"), 72)
    assert size == (400, 1600) and small.width < 400 and small.height > small.width
    assert open_image(ImageRef.of_file(tmp_path / "turned.jpg")).size == size
    one = fingerprint(ImageRef.of_file(tmp_path / "turned.jpg"))
    assert (one.width, one.height) == size
