"""What a run is made with: versions of packages, and the device. Several, where it was continued with others."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from basic_lite.training.files import write_json
from basic_lite.training.places import SOFTWARE, read_json
from basic_lite.version import __version__

# What a result may depend on.
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton", "liger-kernel")


def versions_of(build: str, device: str) -> dict[str, str]:
    """Names and versions.

    Args:
        build: what torch was built for.
        device: its name.
    """
    found = {"basic-lite": __version__, "Python": platform.python_version()}
    found |= {name: version for name in PACKAGES if (version := _installed(name)) is not None}
    return {**found, "torch's build": build, "device": device}


@cache
def _installed(name: str) -> str | None:
    """A package's version; None: it isn't there. Read once: each checkpoint names them, and a process keeps its own."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write_software(run: Path, step: int, versions: dict[str, str]) -> None:
    """Write down what the run is made with after so many of its steps, if that is something else than before.

    What was noted of later steps goes, since they are made again.
    """
    found = [one for one in read_software(run) if one["step"] < step]
    if not found or found[-1]["versions"] != versions:
        found.append({"step": step, "versions": versions})
    write_json(run / SOFTWARE, found)


def read_software(run: Path) -> list[dict[str, Any]]:
    """Each with the steps done before, ``step``, and ``versions``; nothing of older runs, or where it was changed."""
    found = read_json(run / SOFTWARE)
    return found if isinstance(found, list) and all(map(_is_ours, found)) else []


def _is_ours(one: Any) -> bool:
    if not isinstance(one, dict) or type(one.get("step")) is not int or not isinstance(one.get("versions"), dict):
        return False
    return all(isinstance(version, str) for version in one["versions"].values())
