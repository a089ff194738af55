"""What package registries carry, and folders made from it once: no model hub is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from basic_lite.training.files import written_whole


class Unavailable(Exception):
    """Something real can't be had here: says what is missing, and what would get it."""


def cache_folder() -> Path:
    """Where everything real is kept: $BASIC_LITE_REAL_CACHE, else below the user's cache folder."""
    chosen = os.environ.get("BASIC_LITE_REAL_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "basic-lite" / "real"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache; ``make(scratch)`` fills it where it isn't there. One process at a time."""
    folder = cache_folder() / name
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            with written_whole(folder, "Make room, or set BASIC_LITE_REAL_CACHE to another folder") as scratch:
                make(scratch)
    return folder


def wheel(name: str) -> zipfile.ZipFile:
    """A Python package's wheel, opened; nothing is installed.

    Raises:
        Unavailable: it can't be fetched.
    """
    folder = cache_folder() / "packages"
    pattern = name.replace("-", "_") + "-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), name]
        _fetch(command, name)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def unpacked_deb(name: str, folder: Path) -> None:
    """Unpack a Debian package below ``folder``; nothing is installed.

    Raises:
        Unavailable: there is no apt-get or dpkg, or the package can't be fetched.
    """
    packages = cache_folder() / "packages"
    packages.mkdir(exist_ok=True)
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise Unavailable(f"the pictures are in the Debian package {name}, and there is no {program} here")
    if not list(packages.glob(f"{name}_*.deb")):
        _fetch(["apt-get", "download", name], name, packages)
    subprocess.run(["dpkg", "-x", str(next(packages.glob(f"{name}_*.deb"))), str(folder)], check=True)


def _fetch(command: list[str], package: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the package {package} can't be fetched: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"the package {package} can't be fetched with {' '.join(command[:4])} …: {reason}")
