"""What holds for every test: one thread, no network, nothing written outside temporary folders."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sys
import tempfile
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import typer.main
from hypothesis import settings

# Before anything imports torch or a Hugging Face library: both read these once. Subprocesses inherit them.
gc.disable()  # while modules are imported; see pytest_runtestloop
_CACHE = tempfile.mkdtemp(prefix="basic-lite-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=_CACHE,
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    PYTHONUTF8="1",
)

settings.register_profile("basic_lite", deadline=None, max_examples=50, database=None)
settings.load_profile("basic_lite")

_connect = socket.socket.connect


def _connect_locally(self: socket.socket, address: Any) -> None:
    local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost", "::1")
    if not local:
        raise OSError(f"a test tried to reach the network: {address}")
    _connect(self, address)


# With the longest first, no worker is left alone at the end.
LONGEST = (
    "test_clip.py",
    "test_siglip.py",
    "test_readme.py",
    "test_fifty_photos.py",
    "test_notebook.py",
    "test_interpreted.py",
    "test_processes.py",
    "test_estimate.py",
    "test_rehearsal.py",
    "test_shipped_runs.py",
    "test_plan.py",
    "test_bench.py",
    "test_export.py",
    "test_training.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; workers take them in this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported stays to the end, so collections of garbage pass it over. They come seldom, too."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    # So a run has nothing to set aside. It would count what is frozen, .05 s of a tiny run's .9.
    if loop := sys.modules.get("basic_lite.training.loop"):
        loop.set_aside = nullcontext  # type: ignore[attr-defined]


def pytest_configure() -> None:
    typer.main.get_command = cache(typer.main.get_command)  # a process has one command; tests call it many times
    socket.socket.connect = _connect_locally  # type: ignore[method-assign, assignment]


def pytest_unconfigure() -> None:
    socket.socket.connect = _connect  # type: ignore[method-assign]
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty folder, so a relative path it writes to (`runs/`) lands there."""
    monkeypatch.chdir(tempfile.mkdtemp(prefix="cwd-", dir=_CACHE))  # tmp_path_factory looks at all earlier ones
