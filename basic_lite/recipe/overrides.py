"""``key.path=value`` from the command line, written into the values of a recipe file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from basic_lite.recipe.problems import KeyPath, Place, RecipeProblem, plain
from basic_lite.recipe.read import Document, read_document, read_scalar


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[RecipeProblem]:
    """Write overrides into the document's values, the last of a key wins; returns what is wrong with them."""
    problems = []
    for number, text in enumerate(overrides, start=1):
        place = Place.on_command_line(number)
        dotted, equals, value_text = text.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            second = text.endswith((".yaml", ".yml"))
            what = "only one recipe can be trained at a time" if second else "expected key.path=value"
            problems.append(RecipeProblem(place, "", f"{what}, found {text!r}; for example training.micro_batch=2"))
            continue
        try:
            value = read_override(value_text)
        except ValueError as error:
            problems.append(RecipeProblem(place, dotted, f"{value_text!r} is {error}"))
            continue
        if document.values is not None:
            problems += _override(document, path, value, place)
    return problems


def _override(document: Document, path: KeyPath, value: Any, place: Place) -> Iterator[RecipeProblem]:
    assert document.values is not None
    holder: Any = document.values
    for depth, part in enumerate(path):
        here, last = path[: depth + 1], depth == len(path) - 1
        above = ".".join(path[:depth])
        if isinstance(holder, list):
            if not part.isascii() or not part.isdigit() or int(part) >= len(holder):
                entries = f"0 to {len(holder) - 1}" if holder else "none"
                message = f"`{above}` is a list here; name one of its entries ({entries}), as in {above}.0"
                yield RecipeProblem(place, ".".join(path), message)
                return
            slot: Any = int(part)
        elif isinstance(holder, dict):
            slot = part
            if holder.get(part) is None and not last:
                holder[part] = {}
            if part not in holder or last or not holder[part]:
                document.keys[here] = place
        else:
            message = f"`{above}` holds {plain(holder)}, not keys, so nothing can be set in it"
            yield RecipeProblem(place, ".".join(path), message)
            return
        if not last:
            holder = holder[slot]
            continue
        holder[slot] = value
        for known in [*document.keys, *document.places]:
            if known[: len(path)] == path:
                document.keys.pop(known, None)
                document.places.pop(known, None)
        document.keys[path] = document.places[path] = place


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
