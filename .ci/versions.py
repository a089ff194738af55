"""Print the versions that an environment has of what is reached into, and check that they are those to be tested.

    python .ci/versions.py [--newest | --lowest | --cuda]

In each case triton must be the one that the release of torch pins: nobody who has a GPU has another.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

# torch's builds for CPUs pin no triton, so their metadata don't say it.
PINNED = {"2.11": "3.6.0", "2.12": "3.7.0", "2.13": "3.7.1"}
RANGE = re.compile(r"([\w.-]+)>=([\d.]+),<([\d.]+)")


def minor(version: str) -> tuple[int, int]:
    """``2.13.0+cpu`` → (2, 13)."""
    major, second = version.split(".")[:2]
    return int(major), int(second)


def pinned_triton(torch: str) -> str | None:
    """The triton of a release of torch: as its metadata say, else as the table does."""
    stated = [re.match(r"triton==([\d.]+)", text) for text in importlib.metadata.requires("torch") or ()]
    return next((match[1] for match in stated if match), PINNED.get("{}.{}".format(*minor(torch))))


def problems(which: str | None) -> list[str]:
    """What is wrong with this environment; prints what it has."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    for requirement in project["project"]["dependencies"]:
        bounded = RANGE.match(requirement)
        if not bounded:
            continue
        name, low, high = bounded.groups()
        version = importlib.metadata.version(name)
        print(f"{name:14} {version:12} of >={low}, <{high}")
        if which == "lowest" and minor(version) != minor(low):
            found.append(f"{name} {version} isn't the lowest of its range, {low}")
        major, second = minor(high)
        if which == "newest" and name != "triton" and minor(version) != (major, second - 1):
            found.append(f"{name} {version} isn't of the newest minor release of its range, {major}.{second - 1}")
    torch, triton = importlib.metadata.version("torch"), importlib.metadata.version("triton")
    pinned = pinned_triton(torch)
    print(f"triton {triton}; torch {torch} from PyPI pins {pinned}")
    if triton != pinned:
        found.append(f"triton {triton} isn't the one that torch {torch} from PyPI pins, {pinned}")
    if which == "cuda" and "+cpu" in torch:
        found.append(f"torch {torch} is a build for CPUs")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python .ci/versions.py", description=(__doc__ or "").splitlines()[0])
    chosen = parser.add_mutually_exclusive_group()
    for name, text in (
        ("newest", "every range is at its newest minor release"),
        ("lowest", "every range is at its lowest"),
        ("cuda", "torch is no build for CPUs"),
    ):
        chosen.add_argument(f"--{name}", dest="which", action="store_const", const=name, help=text)
    found = problems(parser.parse_args().which)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
