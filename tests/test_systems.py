"""Other systems than this one, as far as they can be had here: no POSIX, Windows' shells and names, ways to start."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basic_lite import console
from basic_lite.data.images import ImageRef, locate
from basic_lite.data.prepare import prepare_data
from basic_lite.data.problems import BadImage
from basic_lite.model.frontend import load_frontend
from basic_lite.tools.chat import terminal
from tests.support.runs import assert_same_terms, run, whole_recipe, write_data

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that is made to look like Windows")
def test_the_demos_paths_run_without_posix(tmp_path: Path) -> None:
    """All modules are imported; two stages are trained, one with a spawned worker, evaluated, asked, exported."""
    place = tmp_path / "Bilder für Ömer\\neu (1)"
    place.mkdir()
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "tests.support.without_posix", str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=300, check=False)
    said = done.stdout.decode("cp1252") + done.stderr.decode("cp1252")
    assert done.returncode == 0 and "Traceback" not in said, said
    assert f'ask it:     basic-lite chat "{place / "exported"}" picture.jpg' in said
    assert "equal greedy answers" in said and (place / "answers.json").is_file()


# --- how processes start --------------------------------------------------------------------------------------------


def of_arrow(folder: Path) -> Path:
    """The records of a LLaVA file as `datasets` saves them."""
    data = datasets.Dataset.from_json(str(folder / "data.json"), cache_dir=str(folder / "cache"))
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("kind", ["path", "saved"])
def test_what_a_worker_gets_can_be_pickled(tmp_path: Path, kind: str) -> None:
    """Where processes start empty, samples and collator go to them in a pickle: it opens what it reads anew."""
    path = write_data(tmp_path, 4)
    source = {kind: str(path if kind == "path" else of_arrow(tmp_path)), "image_dir": str(tmp_path / "images")}
    recipe = whole_recipe(tmp_path, {"data.train": source})
    ready = prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None)
    first = ready.collator([ready.train[i] for i in range(4)])
    data, collator = pickle.loads(pickle.dumps((ready.train, ready.collator)))
    again = collator([data[i] for i in range(4)])
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.soak  # plain: the two above
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"], indirect=True)
@pytest.mark.parametrize("kind", ["path", "saved"])
def test_workers_may_start_in_any_way(tmp_path: Path, start_method: str, kind: str) -> None:
    """Windows and macOS spawn; Python 3.14 has a server that forks. The run is that of no workers."""
    path = write_data(tmp_path)
    source = {kind: str(path if kind == "path" else of_arrow(tmp_path)), "image_dir": str(tmp_path / "images")}
    changes: dict[str, Any] = {"data.train": source, "training.max_steps": 2}
    alone = run(tmp_path, {**changes, "name": "alone"})
    assert_same_terms(alone, run(tmp_path, {**changes, "name": "workers", "data.workers": 2}), rel=0)


# --- what is typed and printed --------------------------------------------------------------------------------------


def words_of_windows(line: str) -> list[str]:
    """The words of a command line by the rules of Microsoft's C runtime, which every program there has."""
    words: list[str] = []
    word, quoted, begun, at = "", False, False, 0
    while at < len(line):
        slashes = len(line[at:]) - len(line[at:].lstrip("\\"))
        at += slashes
        if line[at : at + 1] == '"':
            word += "\\" * (slashes // 2)
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            begun, at = True, at + 1
            continue
        word += "\\" * slashes
        begun = begun or slashes > 0
        if at < len(line):
            if line[at] in " \t" and not quoted:
                words += [word] if begun else []
                word, begun = "", False
            else:
                word, begun = word + line[at], True
            at += 1
    return words + ([word] if begun else [])


@given(words=st.lists(st.text(alphabet="ab\"\\ '$[,]é", max_size=6), min_size=1, max_size=4))
def test_a_printed_command_is_read_as_it_was_meant(words: list[str]) -> None:
    before = sys.platform
    try:
        sys.platform = "win32"
        windows = console.command_line(words)
        sys.platform = "linux"
        posix = console.command_line(words)
    finally:
        sys.platform = before
    assert shlex.split(posix) == words and words_of_windows(windows) == words


def test_commands_of_windows_are_quoted_for_its_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comma makes two words in PowerShell, `<` reads a file in cmd; single quotes quote in neither's C runtime."""
    monkeypatch.setattr(sys, "platform", "win32")
    words = ["basic-lite", "train", r"C:\My Runs\r.yaml", "lora.targets=[q_proj,v_proj]", "model.image_token=<image>"]
    quoted = r'"C:\My Runs\r.yaml" "lora.targets=[q_proj,v_proj]" "model.image_token=<image>"'
    assert console.command_line(words) == f"basic-lite train {quoted}"


# --- names and paths ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.sep == "\\", reason="a backslash separates folders here anyway")
def test_a_list_made_on_windows_finds_its_pictures(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    folder = str(tmp_path)
    assert locate(ImageRef(r"images\0.png", folder)) == str(tmp_path / "images" / "0.png")
    for name in (r"..\0.png", r"images\..\..\0.png"):
        with pytest.raises(BadImage, match="leaves the image folder"):
            locate(ImageRef(name, folder), must_exist=False)
    with pytest.raises(BadImage, match="does not exist"):
        locate(ImageRef(r"images\7.png", folder))
    # On this system a file may have a backslash in its name.
    named = tmp_path / r"images\1.png"
    named.write_bytes((tmp_path / "images" / "1.png").read_bytes())
    assert locate(ImageRef(named.name, folder)) == str(named)


@pytest.mark.parametrize(
    "platform, parts", [("win32", [r"C:\My Photos\a.png", r"b\c.png"]), ("linux", ["My a.png", "b.png"])]
)
def test_paths_dropped_on_a_chat_keep_their_backslashes(
    platform: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert terminal.split_paths(f'"{parts[0]}" {parts[1]}') == parts
    assert terminal.split_paths(r"My\ a.png b.png") == (["My\\", "a.png", "b.png"] if platform == "win32" else parts)
