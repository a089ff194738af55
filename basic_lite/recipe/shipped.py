"""The recipes that come with the package, and which file a user means by a name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from basic_lite.errors import UserError


def find_recipe(path: str | Path) -> Path:
    """The file a user means: the path itself, or the shipped recipe of that name.

    Raises:
        UserError: there is neither; names the nearest recipe there is.
    """
    path = Path(path)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_recipes()}
    by_name = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if by_name and not path.exists() and path.stem in shipped:
        return shipped[path.stem]
    beside = path if path.is_dir() else path.parent
    known = sorted(beside.glob("*.y*ml")) if beside.is_dir() else []
    known += [Path("recipes", file.name) for file in shipped.values()]
    what = "is a folder, not a recipe file" if path.is_dir() else "doesn't exist"
    near = get_close_matches(path.stem, [file.stem for file in known], 1, 0.0)
    best = next(file for file in known if file.stem == near[0]) if near else None
    hint = f"; the nearest is {best}" if best else ""
    raise UserError(f"the recipe {path} {what}{hint}\nShipped recipes: {', '.join(sorted(shipped))}")


def shipped_recipes() -> list[Path]:
    """The recipe files of the package: beside it in a source tree, in ``share`` when installed."""
    beside = Path(__file__).resolve().parents[2] / "recipes"
    if (beside.parent / "pyproject.toml").is_file():
        return sorted(beside.glob("*.yaml"))
    try:
        installed = files("basic-lite") or []
    except PackageNotFoundError:
        installed = []
    found = [Path(str(file.locate())) for file in installed if file.parts[-3:-1] == ("basic-lite", "recipes")]
    return sorted(file.resolve() for file in found if file.suffix == ".yaml")


def shipped_recipe(name: str) -> Path:
    """Path of a shipped recipe by its name (``7b_qlora``, with or without ``.yaml``).

    Raises:
        UserError: no recipe of that name is shipped; lists those that are.
    """
    for path in shipped_recipes():
        if path.stem == name.removesuffix(".yaml"):
            return path
    raise UserError(f"no recipe {name!r} is shipped; there are: {', '.join(p.stem for p in shipped_recipes())}")
