"""Folders that can't be written, also for root; small disks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# linux/capability.h: version 3, and what lets root pass over the rights of files.
_VERSION = 0x20080522
_OVERRIDE, _SEARCH = 1 << 1, 1 << 2


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """This thread obeys the rights of files inside this context, whoever it is."""
    if sys.platform == "win32":
        pytest.skip("Windows has other rights")
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root can write everything here")
    head, words = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(head, words) == 0
    before = words[0]
    words[0] = before & ~(_OVERRIDE | _SEARCH)
    assert libc.capset(head, words) == 0
    try:
        yield
    finally:
        words[0] = before
        assert libc.capset(head, words) == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in a folder, in memory; ``enlarge`` makes room on it."""
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder)):
        pytest.skip("this user can mount no file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(disk: Path, size: str) -> None:
    """Make room on a small disk."""
    assert _mount("-o", f"remount,size={size}", str(disk))


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
