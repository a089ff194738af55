"""What the suite needs of a machine: packages that are installed there, or that travel as wheels."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS, SITE = ROOT / ".whl", ROOT / ".site"
MARKER = SITE / "unpacked-for.txt"
# What the steps take of the extra [test].
TESTS = {"pytest", "pytest-xdist", "hypothesis", "matplotlib"}


def paths() -> list[str]:
    """Where Python finds the packages, before all that is installed."""
    return [*([str(SITE)] if _unpacked_for() == _python() else []), str(ROOT), str(ROOT / "kernels")]


def unpack() -> str | None:
    """Unpack the wheels that travel, where this machine lacks something. What went wrong; None if nothing."""
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels or _unpacked_for() == _python() or not missing() + notes():
        return None
    how = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(SITE)]
    command = [sys.executable, "-m", "pip", "install", *how, *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    MARKER.write_text(_python(), encoding="utf-8")
    return None


def _python() -> str:
    return "{}.{}".format(*sys.version_info)


def _unpacked_for() -> str | None:
    """The Python whose wheels were unpacked; None if none were."""
    return MARKER.read_text(encoding="utf-8") if MARKER.is_file() else None


def environment() -> dict[str, str]:
    """A step's environment: our packages, nothing of a test run's, nothing from the network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    found = os.pathsep.join([*paths(), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": found, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}


VersionOf = Callable[[str], str]


def missing(version_of: VersionOf = importlib.metadata.version) -> list[str]:
    """What has to be installed first, a line each; ``version_of`` raises for what isn't there."""
    return [
        f"{name} isn't installed; {wanted} is needed" for name, wanted, version in _wanted(version_of) if not version
    ]


def notes(version_of: VersionOf = importlib.metadata.version) -> list[str]:
    """Versions outside of the project's ranges, a line each. The suite goes on: a card is rare."""
    from packaging.requirements import Requirement

    return [
        f"{name} {version} is installed; {wanted} is asked for"
        for name, wanted, version in _wanted(version_of)
        if version and not Requirement(wanted).specifier.contains(version, prereleases=True)
    ]


def _wanted(version_of: VersionOf) -> Iterator[tuple[str, str, str | None]]:
    """Name, requirement and installed version of each package that the steps need."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        if (text not in project["dependencies"] and wanted.name not in TESTS) or (
            wanted.marker and not wanted.marker.evaluate()
        ):
            continue
        try:
            version = version_of(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        yield wanted.name, f"{wanted.name}{wanted.specifier}", version
