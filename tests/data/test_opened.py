"""Pictures are opened once; which are whole is remembered, safely."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from basic_lite.data import opened
from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import DataReport, check_data
from basic_lite.data.images import ImageRef, open_image, require_whole
from basic_lite.data.opened import OpenedBefore
from basic_lite.data.problems import BadImage
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import DataSection, SourceSection
from tests.support.data import image_id, tokenizer, write_image, write_json

Check = Callable[..., DataReport]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of pictures as they are opened; what little there is to remember is remembered."""
    names: list[str] = []

    def noted(image: ImageRef) -> None:
        names.append(image.name)
        require_whole(image)

    monkeypatch.setattr(opened, "require_whole", noted)
    monkeypatch.setattr(opened, "_WORTH_KEEPING_S", 0.0)
    return names


def record(name: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a ring"}]
    return {"id": name, "image": name, "conversations": turns}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check five records of three pictures, of which c.png is broken."""
    for number, name in enumerate(["a.png", "b.png", "c.png"]):
        write_image(tmp_path / "pics" / name, (10, 10), number)
    broken = tmp_path / "pics" / "c.png"
    broken.write_bytes(broken.read_bytes()[:80])
    write_json(tmp_path / "data.json", [record(name) for name in ("a.png", "c.png", "b.png", "a.png", "c.png")])

    def checked(source: SourceSection | None = None, **keys: Any) -> DataReport:
        source = source or SourceSection(path="data.json", image_dir="pics")
        given = {name: keys.pop(name) for name in ("check_images", "bad_records") if name in keys}
        section = DataSection(train=source, max_length=200, **{"bad_records": "drop", **given})
        tok = tokenizer("byte_bos")
        records = load_records(source, root=tmp_path)
        keys = {"cache": tmp_path / "cache", **keys}
        return check_data(records, ChatFormat("v1", tok, image_id(tok), 25), section, **keys)

    return checked


def test_a_picture_is_opened_once_and_not_again_while_it_is_the_same(
    check: Check, seen: list[str], tmp_path: Path
) -> None:
    report = check()
    assert sorted(seen) == ["a.png", "b.png", "c.png"]
    assert report.kept.tolist() == [0, 2, 3] and report.broken == [1, 4]
    assert [problem.place for problem in report.problems] == [
        "data.json, record 2 (id c.png)",
        "data.json, record 5 (id c.png)",
    ]
    assert "c.png' can't be decoded" in str(report.problems[1])
    seen.clear()
    again = check()
    assert seen == ["c.png"]  # what is broken is no fact to remember
    assert again.fingerprint == report.fingerprint
    seen.clear()
    write_image(tmp_path / "pics" / "a.png", (12, 10), 9)  # replaced
    write_image(tmp_path / "pics" / "c.png", (10, 10), 2)  # fetched again
    assert check().kept.tolist() == [0, 1, 2, 3, 4]
    assert sorted(seen) == ["a.png", "c.png"]
    seen.clear()
    check(check_images="exists")
    check(check_images="none")
    assert seen == []


@pytest.mark.parametrize("changed", ["time", "size"])
def test_a_picture_of_another_time_or_size_is_opened_again(
    check: Check, seen: list[str], tmp_path: Path, changed: str
) -> None:
    check()
    seen.clear()
    picture = tmp_path / "pics" / "a.png"
    before = picture.stat()
    if changed == "size":
        picture.write_bytes(picture.read_bytes() + b"more")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns + (changed == "time") * 2 * 10**9))
    after = picture.stat()
    assert (after.st_size != before.st_size, after.st_mtime_ns != before.st_mtime_ns) == (
        changed == "size",
        changed == "time",
    )
    check()
    assert sorted(seen) == ["a.png", "c.png"]


def test_with_refuse_every_bad_picture_is_named(check: Check) -> None:
    with pytest.raises(
        UserError, match=r"2 of 5 records can't be used \(unreadable picture: 2\):\n.*record 2 .*\n.*record 5 "
    ):
        check(bad_records="refuse")


def test_a_broken_picture_is_dropped_as_a_missing_one_is(check: Check, tmp_path: Path) -> None:
    broken = check()
    (tmp_path / "pics" / "c.png").unlink()
    missing = check()
    assert missing.fingerprint == broken.fingerprint != ""
    assert missing.broken == broken.broken and (missing.kept == broken.kept).all()
    write_image(tmp_path / "pics" / "c.png", (10, 10), 2)
    assert check().fingerprint != broken.fingerprint
    # A run that continues has the samples that it began with, whatever was repaired or broke in the meantime.
    (tmp_path / "pics" / "a.png").write_bytes(b"no picture")
    again = check(broken=broken.broken)
    assert again.fingerprint == broken.fingerprint and (again.kept == broken.kept).all()
    assert again.broken == broken.broken


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "other decoder"])
def test_a_damaged_memory_is_no_memory(
    check: Check, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    check()
    (file,) = (tmp_path / "cache").glob("*.keys")
    data = file.read_bytes()
    if damage == "other decoder":
        monkeypatch.setattr("PIL.__version__", "1.0")
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        file.write_bytes({"cut": data[:-8], "flipped": flipped, "empty": b"", "foreign": b"{}" * 40}[damage])
    seen.clear()
    check()
    assert sorted(seen) == ["a.png", "b.png", "c.png"]
    seen.clear()
    check()
    assert seen == ["c.png"]


def test_a_start_without_a_place_for_it_remembers_nothing(check: Check, seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    said: list[str] = []
    assert check(say=said.append).kept.tolist() == [0, 2, 3]
    assert len(said) == 1 and "can't be remembered" in said[0]
    check(cache=None, say=said.append)
    assert len(said) == 1 and len(seen) == 6


def test_what_an_interrupted_start_has_opened_is_remembered(
    check: Check, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "_AT_ONCE", 1)

    def stopping(what: str, done: int, total: int) -> None:
        if (what, done) == ("pictures", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(progress=stopping)
    first = seen[0]
    seen.clear()
    check()
    assert len(seen) == 2 and first not in seen


def test_memory_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_MOST_KEYS", 3)
    monkeypatch.setattr(opened, "_MOST_FILES", 2)

    def known(folder: str) -> frozenset[int]:
        before = OpenedBefore(tmp_path)
        before.load([folder])
        return before.known

    OpenedBefore(tmp_path).keep({"a": [1, 2]})
    OpenedBefore(tmp_path).keep({"a": [2, 2**64 - 1]})
    assert known("a") == {1, 2, 2**64 - 1}
    OpenedBefore(tmp_path).keep({"a": [5]})
    assert known("a") == {5}
    for folder in ("b", "c"):
        OpenedBefore(tmp_path).keep({folder: [7]})
    assert len(list(tmp_path.glob("*.keys"))) == 2 and len(list(tmp_path.iterdir())) == 2
    assert known("c") == {7}


def test_two_programs_make_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that one had listed was deleted by the other: nothing was remembered from there on."""
    monkeypatch.setattr(opened, "_MOST_FILES", 1)
    (tmp_path / "deleted.keys").symlink_to("nowhere")
    OpenedBefore(tmp_path).keep({"a": [1]})
    OpenedBefore(tmp_path).keep({"b": [2]})
    assert len([file for file in tmp_path.glob("*.keys") if file.exists()]) == 1


def test_programs_that_start_together_open_a_picture_once(
    check: Check, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "_WORTH_WAITING", 1)
    started, waiting = threading.Event(), threading.Event()

    def slow(image: ImageRef) -> None:
        seen.append(image.name)
        started.set()
        waiting.wait(20)
        require_whole(image)

    monkeypatch.setattr(opened, "require_whole", slow)
    first = threading.Thread(target=check)
    first.start()
    assert started.wait(20)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    report = check(say=say)
    first.join()
    assert said == [
        "another process is opening these pictures; this one waits, to open none twice",
        "opening 1 pictures to see that they are whole (data.check_images)",  # the broken one, again
    ]
    assert sorted(seen) == ["a.png", "b.png", "c.png", "c.png"] and report.broken == [1, 4]


def test_pictures_in_tables_are_opened_too(check: Check, seen: list[str], tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    blobs = [(tmp_path / "pics" / name).read_bytes() for name in ("a.png", "c.png", "b.png", "a.png")]
    rows = {
        "image": [{"bytes": blob, "path": None} for blob in blobs],
        "question": ["what?"] * 4,
        "answer": ["a ring"] * 4,
    }
    features = Features({"image": ImageFeature(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "table")
    source = SourceSection(saved="table")
    report = check(source)
    assert report.kept.tolist() == [0, 2, 3] and report.broken == [1]
    assert "table, record 2: image" in str(report.problems[0]) and "can't be decoded" in str(report.problems[0])
    assert len(seen) == 3
    seen.clear()
    check(source)
    assert len(seen) == 1


def jpegs() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((96, 72))
    made = []
    ways: list[tuple[str, dict[str, Any]]] = [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})]
    for mode, how in ways:
        stream = io.BytesIO()
        picture.convert(mode).save(stream, "JPEG", **how)
        made.append(stream.getvalue())
    return made


@pytest.mark.parametrize("whole", jpegs(), ids=["plain", "progressive", "grey", "CMYK"])
def test_a_quick_look_finds_what_opening_finds(whole: bytes) -> None:
    """A JPEG is decoded small when it is checked. Cut and flipped, it is broken for both or for none."""
    random_ = random.Random(0)
    cases = [whole, *(whole[:-n] for n in (1, 2, 3)), *(whole[: random_.randrange(len(whole))] for _ in range(60))]
    for _ in range(120):
        changed = bytearray(whole)
        for _ in range(random_.choice([1, 10])):
            changed[random_.randrange(len(whole))] ^= 1 << random_.randrange(8)
        cases.append(bytes(changed))
    found = [[_problem(look, ImageRef("x", blob=data)) for data in cases] for look in (open_image, require_whole)]
    assert found[0] == found[1]
    assert found[0][0] is None and 40 < sum(problem is not None for problem in found[0]) < len(cases)


def _problem(look: Callable[[ImageRef], Any], image: ImageRef) -> str | None:
    try:
        look(image)
    except BadImage as problem:
        return str(problem)
    return None
