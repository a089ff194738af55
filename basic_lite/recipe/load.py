"""Recipes: read strictly, overridden from the command line, checked as a whole, written back.

    load_recipe("recipes/7b_qlora.yaml", ["training.micro_batch=2"]) -> Recipe

Everything wrong is reported at once: broken overrides, unknown and duplicate keys, wrong types, missing
keys and impossible combinations, each with file, line, column, key path and the nearest valid key or value.
The keys are in ``schema``; ``check`` looks at each key, ``combinations`` at keys together. No torch here: reading a
recipe is instant.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from basic_lite.console import command_line
from basic_lite.endings import DATA_ENDINGS, PICTURE_ENDINGS, RECIPE_ENDINGS, ends_as_picture
from basic_lite.errors import UserError
from basic_lite.outside import at_home, read_text
from basic_lite.printable import quoted
from basic_lite.recipe import combinations
from basic_lite.recipe.check import Checker
from basic_lite.recipe.presets import with_preset
from basic_lite.recipe.problems import KeyPath, Place, plain
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.yaml import Document, read_document, read_scalar, write_yaml

_PACKAGE = Path(__file__).resolve().parents[1]
_KEY = re.compile(r"\w+(\.\w+)*")
# Of files that are no recipes; one may be written as JSON.
_DATA_ENDINGS = {*DATA_ENDINGS, *PICTURE_ENDINGS} - {".json"}
# Recipes of a folder that a message lists.
_MOST_NAMED = 5


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe file, change some of its keys, and check everything.

    If no file has this name, a shipped recipe of that name is used (``recipes/7b_qlora.yaml``, ``7b_qlora``).

    Args:
        overrides: texts ``key.path=value`` as on the command line, or a mapping of dotted keys to values as Python has
            them, as in ``{"training.max_steps": 20}``. A value takes the place of all that the key held.

    Raises:
        UserError: with every problem found, each on a line of its own: place, key path, what and fix.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"load_recipe takes a file, or the name of a shipped recipe, and this is {quoted(path)}; name one"
        )
    path = find_recipe(path)
    document, checked = _each_key_checked(path, overrides)
    if document.values is not None:
        for keys, message in combinations.findings(checked):
            paths = [tuple(key.split(".")) for key in keys]
            written = next((one for one in paths if one in document.places), paths[0])
            document.report(document.place_of(written), paths[0], message)
    _refuse(path, document)
    checked["output"] = os.path.expanduser(checked["output"])
    for key in ("base", "vision", "llm", "projector", "start"):
        if (place := checked["model"][key]) is not None:
            checked["model"][key] = os.path.expanduser(place)
    # Only what is written counts as given: `model.start` and `training.plan` fill in the rest.
    for name in ("model", "training"):
        given = (document.values or {}).get(name) or {}
        checked[name] = {key: value for key, value in checked[name].items() if key in given}
    return _with_packaged_models(Recipe.model_validate(checked))


def require_keys(path: str | os.PathLike[str], overrides: Sequence[str]) -> None:
    """Refuse a recipe, or overrides, of which a key is wrong by itself; how keys go together isn't looked at.

    The recipe's own data isn't looked at either, since a command that is given data puts that in its place.

    Raises:
        UserError: as ``load_recipe``.
    """
    path = find_recipe(path)
    document, _ = _each_key_checked(path, ["data.train={path: data.jsonl}", "data.eval=null", *overrides])
    _refuse(path, document)


def _each_key_checked(path: Path, overrides: Sequence[str] | Mapping[str, Any]) -> tuple[Document, Any]:
    """A recipe's document with the problems of single keys, and what it holds; None: it isn't YAML."""
    document = read_document(_read_text(path), path.name)
    apply_overrides(document, overrides)
    if document.values is None:
        return document, None
    return document, Checker(document).section(Recipe, with_preset(document.values), ())


def _refuse(path: Path, document: Document) -> None:
    """Raise what was found wrong, if anything was."""
    if document.problems:
        unique = sorted(set(document.problems), key=lambda problem: (problem.place, problem.key))
        count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
        raise UserError("\n".join([f"the recipe {path} has {count}:", *(f"  {problem}" for problem in unique)]))


def _with_packaged_models(recipe: Recipe) -> Recipe:
    """The demo's models come with the package; their paths in a recipe hold wherever the command is run."""
    own = {
        f"model.{key}": str(_PACKAGE.parent / name)
        for key in ("vision", "llm")
        if (name := getattr(recipe.model, key) or "").startswith(f"{_PACKAGE.name}/") and not os.path.exists(name)
    }
    return changed_recipe(recipe, own)


def _read_text(path: Path) -> str:
    try:
        return read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"the recipe {path} is not a text file in UTF-8 (line {line}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"the recipe {path} can't be read: {error.strerror or error}; give a file that can be"
        ) from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that :func:`load_recipe` reads back to an equal one."""
    return write_yaml(recipe.model_dump())


def flat_values(recipe: Recipe) -> dict[str, Any]:
    """Every key's value by its dotted name, as JSON has it."""

    def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(flat(recipe.model_dump(mode="json"), ""))


def apply_overrides(document: Document, overrides: Sequence[str] | Mapping[str, Any]) -> None:
    """Write overrides into the document's values, the last of a key wins; what is wrong with them is reported there.

    Raises:
        UserError: ``overrides`` is one text.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides are a list of texts, or a mapping of keys to values; write [{overrides!r}]")
    if isinstance(overrides, Mapping):
        for number, (dotted, value) in enumerate(overrides.items(), start=1):
            place = Place.of_override("overrides", number)
            if document.values is None:
                continue
            if not isinstance(dotted, str) or not all(dotted.split(".")):
                document.report(place, (), f"expected a key such as training.micro_batch, found {dotted!r}")
            else:
                _override(document, tuple(dotted.split(".")), _as_yaml(value), place)
        return
    for number, text in enumerate(_joined(overrides), start=1):
        place = Place.of_override("command line", number)
        if isinstance(text, _Spaced):
            what = f"found spaces round the = of {plain(text)}; write it without: {command_line([text.joined])}"
            document.report(place, (), what)
            continue
        dotted, equals, value_text = text.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            what = f"expected key.path=value, found {text!r}; for example training.micro_batch=2"
            if text.endswith(RECIPE_ENDINGS):
                what = (
                    f"this command takes one recipe, found {text!r} too; `basic-lite run` takes several, in their order"
                )
            document.report(place, (), what)
            continue
        try:
            value = read_override(value_text)
        except ValueError as error:
            document.report(place, (dotted,), f"{value_text!r} is {error}")
            continue
        if document.values is not None:
            _override(document, path, value, place)


class _Spaced(str):
    """Words of a command line that were meant as one: a key, a =, and a value."""

    @property
    def joined(self) -> str:
        key, _, value = self.partition("=")
        return f"{key.strip()}={value.strip()}"


def _joined(words: Sequence[str]) -> Iterator[str]:
    """Overrides as they were meant; `key = value`, `key= value` and `key =value` are one each."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if _ends_at_equals(word, rest):
            second = rest.pop(0)
            third = f" {rest.pop(0)}" if second == "=" and rest and "=" not in rest[0] else ""
            yield _Spaced(f"{word} {second}{third}")
        else:
            yield word


def _ends_at_equals(word: str, rest: list[str]) -> bool:
    """Whether the next word goes on with an override: it begins with its =, or stands alone behind one."""
    if not rest or not _KEY.fullmatch(word.removesuffix("=")):
        return False
    return "=" not in rest[0] if word.endswith("=") else rest[0].startswith("=")


def _as_yaml(value: Any) -> Any:
    """A value of Python as a file would give it; a copy, so that the caller's stays as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _as_yaml(one) for key, one in value.items()}
    return [_as_yaml(one) for one in value] if isinstance(value, list | tuple) else value


def _override(document: Document, path: KeyPath, value: Any, place: Place) -> None:
    holder: Any = document.values
    for depth, part in enumerate(path):
        here, last = path[: depth + 1], depth == len(path) - 1
        above = ".".join(path[:depth])
        if isinstance(holder, list):
            if not part.isascii() or not part.isdigit() or len(part) > 9 or int(part) >= len(holder):
                entries = f"0 to {len(holder) - 1}" if holder else "none"
                what = f"`{above}` is a list here; name one of its entries ({entries}), as in {above}.0"
                document.report(place, path, what)
                return
            slot: Any = int(part)
        elif isinstance(holder, dict):
            slot = part
            if holder.get(part) is None and not last:
                holder[part] = {}
            if part not in holder or last or not holder[part]:
                document.keys[here] = place
        else:
            document.report(place, path, f"`{above}` holds {plain(holder)}, not keys, so nothing can be set in it")
            return
        if not last:
            holder = holder[slot]
    replaced = holder[slot] if isinstance(holder, list) else holder.get(slot)
    holder[slot] = value
    for known in [] if not isinstance(replaced, dict | list) else [*document.keys, *document.places]:
        if known[: len(path)] == path:
            document.keys.pop(known, None)
            document.places.pop(known, None)
    document.keys[path] = document.places[path] = place
    document.blank.discard(path)


def read_override(text: str) -> Any:
    """The value in ``key.path=value``: ``[...]``, ``{...}`` and quoted texts as YAML, else a plain scalar.

    So Windows paths, globs and texts with ``: `` or ``#`` need no YAML quoting.

    Raises:
        ValueError: brackets or quotes that don't close.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return read_scalar(text)
    document = read_document(f"value: {text}\n", "value")
    if document.problems or document.values is None or len(document.values) != 1:
        reason = document.problems[0].message if document.problems else "not one value"
        raise ValueError(reason)
    return document.values["value"]


def as_override(value: Any) -> str:
    """A value as it is written in ``key.path=value``."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_override, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_recipe(path: str | os.PathLike[str]) -> Path:
    """The file a user means: the path itself, or the shipped recipe of that name.

    Raises:
        UserError: there is neither; names a recipe that is near, and the shipped ones.
    """
    named = os.fspath(path).strip() != ""
    path = at_home(path)
    if os.path.isfile(path):
        if path.suffix.lower() in _DATA_ENDINGS:
            place = path.parent if ends_as_picture(path.name) else path
            again = command_line(["basic-lite", "data", place.as_posix()])
            raise UserError(f"{path} is data, and a recipe belongs here; `{again}` writes one for it")
        return path
    shipped = {file.stem: file for file in shipped_recipes()}
    by_name = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if by_name and not os.path.exists(path) and path.stem in shipped:
        return shipped[path.stem]
    if not named:
        raise UserError(f"the recipe's name is empty; give a file, or a shipped recipe: {', '.join(sorted(shipped))}")
    last = f"\nShipped recipes: {', '.join(sorted(shipped))}"
    if os.path.isdir(path):
        raise UserError(f"the recipe {path} is a folder, not a recipe file; {_meant_by_folder(path)}{last}")
    known = sorted(path.parent.glob("*.y*ml")) if os.path.isdir(path.parent) else []
    known += [Path("recipes", file.name) for file in shipped.values()]
    stems = {file.stem.lower(): file for file in reversed(known)}
    near = get_close_matches(path.stem[:100].lower(), stems, 1, 0.5)
    hint = f"did you mean {stems[near[0]]}?" if near else "name a file, or a shipped recipe"
    what = "isn't a file" if os.path.exists(path) else "doesn't exist"
    raise UserError(f"the recipe {path} {what}; {hint}{last}")


def _meant_by_folder(folder: Path) -> str:
    """What a user means who names a folder as a recipe: the file of that name, one in it, or their data."""
    for ending in RECIPE_ENDINGS:
        if folder.name and os.path.isfile(file := folder.with_name(folder.name + ending)):
            return f"did you mean {file}?"
    if inside := sorted(folder.glob("*.y*ml")):
        more = ", …" if len(inside) > _MOST_NAMED else ""
        return f"name one that is in it: {', '.join(map(str, inside[:_MOST_NAMED]))}{more}"
    recipe = folder.parent / "recipe.yaml"
    if os.path.isfile(folder / "recipe.json") and os.path.isfile(recipe):
        further = command_line(["basic-lite", "train", str(recipe), f"model.start={folder}", "name=NEW"])
        return f"it holds a run's weights; name the run's recipe, {recipe}, or train on from them with `{further}`"
    return "`basic-lite data FOLDER` writes a recipe for the pictures and texts of a folder"


def shipped_recipes() -> list[Path]:
    """The recipe files of the package: beside it in a source tree, in ``share`` when installed."""
    beside = _PACKAGE.parent / "recipes"
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
