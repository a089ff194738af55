"""Import every module of the project. Some need packages of an extra (`.[web]`), which may be absent."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import requires

from packaging.requirements import Requirement

PACKAGES = ("basic_lite", "basic_lite_kernels")


def main() -> None:
    """Print which modules wait for an extra."""
    needed = map(Requirement, requires("basic-lite") or [])
    extras = {one.name.replace("-", "_") for one in needed if "extra ==" in str(one.marker)}
    for module in _modules():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in extras:
                raise
            print(f"{module} needs {missing}, of an extra that isn't installed")


def _modules() -> Iterator[str]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                yield module.name


main()
