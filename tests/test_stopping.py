"""What stops any command, wherever it is: a signal, a full disk. Those of a training are in ``test_interruption``."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from basic_lite import cli
from basic_lite.signals import STOPPING
from basic_lite.tools.clean import clean
from basic_lite.training.files import new_folder
from tests.support.runs import quiet


def run_demo(
    demo: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, str]:
    """Run a command that does something else; gives its exit status and what it said."""
    module = types.ModuleType("basic_lite.demo.run")
    module.demo = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "basic_lite.demo.run", module)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo"])
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("path", [None, "a/b"])
def test_a_full_disk_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str | None
) -> None:
    """Where no command knows better."""

    def demo(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    place = "" if path is None else " of a/b"
    said = f"error: the disk{place} is full (or your share of it); make room, and give the same command again\n"
    assert run_demo(demo, monkeypatch, capsys) == (2, said)


def test_debugging_shows_where_a_command_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def demo(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("BASIC_LITE_DEBUG", "1")
    with pytest.raises(typer.Abort) as stopped:
        run_demo(demo, monkeypatch, capsys)
    assert isinstance(stopped.value.__cause__, KeyboardInterrupt)


IN_AN_IMPORT = """
class Press:
    def find_spec(self, name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
# Typer ends what is stopped there without a word.
BEFORE_THE_COMMAND = """
from basic_lite.commands.spare import Command
Command.parse_args = lambda *_: signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("press", [IN_AN_IMPORT, BEFORE_THE_COMMAND])
def test_ctrl_c_at_once_is_no_traceback(press: str) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["basic-lite"].partition(":")
    start = f"sys.argv = ['basic-lite', 'runs']\nfrom {module} import {function}\n{function}()"
    code = f"import signal, sys\n{press}\n{start}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_stops_any_command_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    """What it has begun is put away, also by what timeout, Slurm and systemd send; a second signal changes nothing."""

    def demo(*_: Any, **__: Any) -> None:
        with new_folder(tmp_path / "out", "make room"):
            try:
                signal.raise_signal(number)
                time.sleep(60)
            finally:
                for other in STOPPING:
                    signal.raise_signal(other)

    before = {one: signal.getsignal(one) for one in STOPPING}
    try:
        assert run_demo(demo, monkeypatch, capsys) == (130, "stopped\n") and not list(tmp_path.iterdir())
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_an_export_that_writes_nothing_for_hours_is_left_alone(tmp_path: Path) -> None:
    """Its check asks both models, which takes hours on a processor; `clean` took it for one that was killed."""
    with new_folder(tmp_path / "out", "make room") as scratch:
        (scratch / "model.safetensors").write_bytes(b"weights")
        for path in (*scratch.iterdir(), scratch):
            os.utime(path, (0, 0))
        assert clean([tmp_path], yes=True, console=quiet()) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
