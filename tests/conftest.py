"""What holds for every test: one thread, no network, nothing written outside temporary folders."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports torch or a Hugging Face library: both read these once. Subprocesses inherit them.
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


def pytest_configure() -> None:
    socket.socket.connect = _connect_locally  # type: ignore[method-assign, assignment]


def pytest_unconfigure() -> None:
    socket.socket.connect = _connect  # type: ignore[method-assign]
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _working_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty folder, so a relative path it writes to (`runs/`) lands there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
