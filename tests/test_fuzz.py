"""Whatever a record, a picture, a recipe or a bundle has in it: it works, or there is one short UserError, soon.

A plain run tries some 2,500 inputs here, and ``-m soak`` twenty times as many; `test_fuzz_commands.py` has more.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from PIL import Image

from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.sources import load_records
from basic_lite.recipe import describe_keys, dump_recipe, load_recipe
from basic_lite.recipe.schema import SourceSection
from basic_lite.training.bundle_files import open_bundle
from tests.support import fuzzing
from tests.support.bundles import write_random_bundle
from tests.support.data import N, image_id, processor, tokenizer
from tests.support.fuzzing import ANY, PARTS, Endless, require_good, soon_or_one_error, tried
from tests.support.recipes import GOOD
from tests.support.runs import tiny_recipe

# The shares of 2,500 inputs.
RECORDS, FILES, PICTURES, RECIPES, OVERRIDES, BUNDLES = 500, 700, 900, 100, 150, 150

TURN = st.fixed_dictionaries(
    {},
    optional={
        "from": ANY | st.sampled_from(["human", "gpt", "system"]),
        "value": ANY,
        "role": ANY | st.sampled_from(["user", "assistant", "system"]),
        "content": ANY
        | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": ANY}) | ANY),
    },
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": ANY,
        "image": ANY,
        "conversations": ANY | st.lists(TURN, max_size=4),
        "messages": ANY | st.lists(TURN, max_size=4),
        "question": ANY,
        "answer": ANY,
        "history": ANY,
        "system": ANY,
        "question_type": ANY,
        "input": ANY,
    },
)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    made = tokenizer("byte", "chatml")
    return ChatFormat("tokenizer", made, image_id(made), N)


def read_all(folder: Path, name: str, chat: ChatFormat) -> None:
    records = load_records(SourceSection(path=name, image_dir="."), root=folder)
    for index in range(len(records)):
        said = name
        try:
            record = records[index]
            chat.encode(record, 500)
            pixels(record.images, processor(), "pad") if record.images else None
        except RecordProblem as problem:
            said = str(problem.at(records.place(index)))
            require_good(said)
        assert said.startswith(name)


@pytest.mark.parametrize("part", PARTS)
def test_records(part: int, tmp_path: Path, chat: ChatFormat) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")

    def act(rows: list[Any]) -> None:
        for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
            (tmp_path / name).write_text(text)
            read_all(tmp_path, name, chat)

    tried(st.lists(ROW | ANY, min_size=1, max_size=2), RECORDS // 2, act, tmp_path, part, ["a.json"])


@pytest.mark.parametrize("part", PARTS)
def test_data_files(part: int, tmp_path: Path, chat: ChatFormat) -> None:
    good = json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}])
    table = 'image,question,answer\n0.png,"what, this",a cat\n'

    def act(edit: tuple[str, int, int, bytes]) -> None:
        ending, start, length, new = edit
        data = (table if ending in ("csv", "tsv") else good).encode()
        (tmp_path / f"a.{ending}").write_bytes(data[:start] + new + data[start + length :])
        read_all(tmp_path, f"a.{ending}", chat)

    endings = st.sampled_from(["json", "jsonl", "csv", "tsv"])
    tried(
        st.tuples(endings, st.integers(0, 90), st.integers(0, 90), st.binary(max_size=12)),
        FILES,
        act,
        tmp_path,
        part,
        ["a."],
    )


def picture(ending: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(out, ending)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of damaged TIFF
@pytest.mark.parametrize("part", PARTS)
def test_pictures(part: int, tmp_path: Path) -> None:
    files = [
        picture(kind, size) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF") for size in ((9, 7), (1, 90))
    ]
    made = processor()

    def act(edit: tuple[bytes, int, int, bytes]) -> None:
        data, start, length, new = edit
        start %= len(data)
        pixels((ImageRef("a", blob=data[:start] + new + data[start + length :]),), made, "pad")

    edits = st.tuples(st.sampled_from(files), st.integers(0, 5000), st.integers(0, 40), st.binary(max_size=8))
    tried(edits, PICTURES, act, tmp_path, part, ["'a'"])


@pytest.mark.parametrize("part", PARTS)
def test_recipe_files(part: int, tmp_path: Path) -> None:
    good = dump_recipe(load_recipe(_written(tmp_path, GOOD.encode())))

    def act(edit: tuple[int, int, str]) -> None:
        start, length, new = edit
        start %= len(good)
        text = good[:start] + new + good[start + length :]
        load_recipe(_written(tmp_path, text.encode("utf-8", "surrogatepass")))

    pieces = st.text(max_size=10) | st.sampled_from(
        ["[", "{", "&a", "*a", "!!x ", ": ", "- ", "#", '"', "'", "\t", "\n"]
    )
    tried(st.tuples(st.integers(0, 5000), st.integers(0, 60), pieces), RECIPES, act, tmp_path, part, ["recipe.yaml"])


def _written(folder: Path, data: bytes) -> Path:
    (folder / "recipe.yaml").write_bytes(data)
    return folder / "recipe.yaml"


@pytest.mark.parametrize("part", PARTS)
def test_overrides(part: int, tmp_path: Path) -> None:
    path = _written(tmp_path, GOOD.encode())
    names = st.sampled_from([row.name for row in describe_keys()]) | st.text(max_size=12)

    def act(given: dict[str, Any]) -> None:
        load_recipe(path, given)

    tried(st.dictionaries(names, ANY, min_size=1, max_size=3), OVERRIDES, act, tmp_path, part, ["overrides"])


@pytest.mark.parametrize("part", PARTS)
def test_bundles(part: int, tmp_path: Path) -> None:
    bundle = write_random_bundle(tmp_path / "final", tiny_recipe(tmp_path))
    manifest = json.loads((bundle / "manifest.json").read_text())
    whole = {name: (bundle / name).read_bytes() for name in ("manifest.json", "recipe.json")}

    def act(edit: tuple[str, Any, int, bytes]) -> None:
        key, value, place, new = edit
        for name, data in whole.items():
            (bundle / name).write_bytes(data)
        if key in whole:
            place %= len(whole[key])
            (bundle / key).write_bytes(whole[key][:place] + new + whole[key][place + len(new) :])
        else:
            (bundle / "manifest.json").write_text(json.dumps({**manifest, key: value}))
        opened = open_bundle(bundle)
        assert opened.step >= 0 and opened.manifest["models"] is not None

    keys = st.sampled_from([*whole, *manifest])
    tried(
        st.tuples(keys, ANY, st.integers(0, 5000), st.binary(max_size=6)), BUNDLES, act, tmp_path, part, [str(bundle)]
    )


def _a_fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"a", ("127.0.0.1", 9))


def test_what_is_touched_is_noticed(tmp_path: Path) -> None:
    own, other = tmp_path / "run", tmp_path / "run2"
    own.mkdir()
    other.mkdir()
    (own / "link").symlink_to(other)
    with soon_or_one_error(own):
        (own / "a").write_text("a")
    acts: list[Callable[[], Any]] = [
        lambda: (other / "a").write_text("a"),  # its name begins alike
        lambda: (own / "link" / "a").write_text("a"),
        lambda: (own / "a").rename(other / "b"),
        lambda: socket.getaddrinfo("127.0.0.1", 9),
        _a_datagram,
        *[_a_fork] * hasattr(os, "fork"),
    ]
    for act in acts:
        with pytest.raises(AssertionError, match=r"open|os\.|socket\."), soon_or_one_error(own):
            act()


def _endless() -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # what is tried may take every error of the common kind
            continue


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the system has no alarm")
def test_what_has_no_end_is_broken_off_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "CLOCK", 0.1)
    with pytest.raises(Endless, match="the input"), soon_or_one_error(tmp_path, (), "the input"):
        _endless()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the most memory can't be forgotten")
def test_each_input_has_its_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one input took isn't another's allowance."""
    # Far above what a system takes from an idle process while this one is measured.
    monkeypatch.setattr(fuzzing, "BYTES", 256 << 20)
    with soon_or_one_error(tmp_path):
        bytearray(b"a") * (192 << 20)
    with pytest.raises(AssertionError), soon_or_one_error(tmp_path):
        bytearray(b"a") * (384 << 20)  # twice as much, and less than that above the first


@pytest.mark.parametrize(
    "text",
    ["recipe.yaml is bad, and only that", "a list of names must fail", "the name can't mean that", "to start failed"],
)
def test_a_message_without_a_way_out_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError, match="says nothing to do"):
        require_good(text)
