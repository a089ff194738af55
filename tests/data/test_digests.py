"""What a digest of a picture tells apart, and what it can't."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from basic_lite.data.digests import DIGEST_BYTES, picture_digest, text_digest
from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Record, Turn

PIECE = 4096


def digest_of(folder: Path, data: bytes, name: str = "a") -> bytes:
    (folder / name).write_bytes(data)
    return picture_digest(ImageRef(name, str(folder)))


@pytest.mark.parametrize("size", [0, 1, 3 * PIECE])
def test_of_a_small_file_every_byte_counts(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * 48
    first = digest_of(tmp_path, data[:size])
    assert len(first) == DIGEST_BYTES and digest_of(tmp_path, data[:size], "b") == first
    changed = {digest_of(tmp_path, data[:at] + b"\xaa\xbb" + data[at + 2 : size]) for at in range(0, size - 1, 300)}
    assert first not in changed and len(changed) == len(range(0, size - 1, 300))


def test_of_a_large_file_three_pieces_and_the_size_count(tmp_path: Path) -> None:
    size = 40_000
    data = bytes(size)
    first = digest_of(tmp_path, data)
    middle = (size - PIECE) // 2
    seen = [0, PIECE - 1, middle, middle + PIECE - 1, size - PIECE, size - 1]
    unseen = [PIECE, middle - 1, middle + PIECE, size - PIECE - 1]
    for at in seen + unseen:
        changed = data[:at] + b"x" + data[at + 1 :]
        assert (digest_of(tmp_path, changed) == first) is (at in unseen), at
    assert digest_of(tmp_path, data + b"\0") != first


def test_bytes_in_memory_are_as_those_of_a_file(tmp_path: Path) -> None:
    for data in (b"short", bytes(range(250)) * 100):
        held = [ImageRef("x", blob=blob) for blob in (data, pa.scalar(data, pa.binary()))]
        assert [picture_digest(image) for image in held] == [digest_of(tmp_path, data)] * 2
    with pytest.raises(BadImage, match="does not exist"):
        picture_digest(ImageRef("none.png", str(tmp_path)))


def test_texts_are_told_apart_by_who_said_what() -> None:
    def of(*turns: Turn, answer: str | None = None, number: int = 1) -> bytes:
        return text_digest(Record(number, "", "s", (), turns, answer=answer))

    one, two = Turn("human", "a"), Turn("gpt", "b")
    assert of(one, two) == of(one, two, number=2)
    assert len({of(one, two), of(two, one), of(one), of(one, answer="b"), of(Turn("human", "ab"))}) == 5
