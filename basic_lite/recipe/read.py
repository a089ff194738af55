"""YAML text to plain values, each with the line and column it stands at.

The node tree of ruamel.yaml is walked here, so that duplicate keys and odd tags are reported beside all else that is
wrong with a recipe, and so that a scalar means the same whatever YAML version a file declares: ``2e-5`` is a number,
``off`` and ``yes`` are texts (the core schema of YAML 1.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from basic_lite.recipe.problems import KeyPath, Place, RecipeProblem, Wrong, plain

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_TAGS = ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")


@dataclass
class Document:
    """Plain values with their places. ``values`` is None when the text could not be read as keys at all."""

    source: str
    values: dict[str, Any] | None = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[RecipeProblem] = field(default_factory=list)

    def place_of(self, path: KeyPath, *, key: bool = False) -> Place:
        """Place of the value (or the key) at ``path``; where that isn't written, of the section above it."""
        own = self.keys if key else self.places
        if path in own:
            return own[path]
        for length in range(len(path), 0, -1):
            if path[:length] in self.keys:
                return self.keys[path[:length]]
        return Place.in_file(self.source, 1, 1)


def read_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    # Python refuses to read integers of thousands of digits.
    if _INTEGER.fullmatch(text) and len(text) < 1000:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def read_document(text: str, source: str) -> Document:
    """Read YAML ``text``; ``source`` names it in messages. Never raises: what is wrong is in ``problems``."""
    document = Document(source)
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, RecursionError) as error:
        document.problems.append(_not_yaml(error, text, source))
        return document
    if root is None:
        what = "the file holds no keys; copy a shipped recipe to start from"
        document.problems.append(RecipeProblem(Place.in_file(source, 1, 1), "", what))
        return document
    value = _value(root, (), document, ())
    if isinstance(value, dict):
        document.values = value
    elif not isinstance(value, Wrong):
        message = f"expected keys with values (`name: ...`), found {plain(value)}"
        document.problems.append(RecipeProblem(_start(root, source), "", message))
    return document


def _not_yaml(error: YAMLError | RecursionError, text: str, source: str) -> RecipeProblem:
    line, column, reason = 1, 1, str(error)
    if isinstance(error, RecursionError):
        return RecipeProblem(Place.in_file(source, 1, 1), "", "brackets nested too deeply to be a recipe")
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            line, column = mark.line + 1, mark.column + 1
        while_doing = f" {error.context}" if error.context else ""
        mend = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        reason = f"{while_doing}: {error.problem}{mend}"
    else:
        # A character YAML doesn't allow: the reader knows its position in the text, not its line.
        position = getattr(error, "position", 0)
        line, column = text[:position].count("\n") + 1, position - text.rfind("\n", 0, position)
        reason = f": {getattr(error, 'reason', None) or error}"
    return RecipeProblem(Place.in_file(source, line, column), "", f"not valid YAML{reason}")


def _start(node: Any, source: str) -> Place:
    return Place.in_file(source, node.start_mark.line + 1, node.start_mark.column + 1)


def _value(node: Any, path: KeyPath, document: Document, above: tuple[Any, ...]) -> Any:
    """The plain value of a node; fills in places. ``above``: the nodes on the way here, to see a cycle."""
    place = _start(node, document.source)
    document.places[path] = place
    dotted = ".".join(path)
    if any(node is other for other in above):
        document.problems.append(RecipeProblem(place, dotted, "an alias that contains itself"))
        return Wrong()
    tag = str(node.tag)
    if not tag.startswith("tag:yaml.org,2002:") or tag.rpartition(":")[2] not in _CORE_TAGS:
        document.problems.append(RecipeProblem(place, dotted, f"recipes have no YAML tags, found {tag}; leave it out"))
        return Wrong()
    if node.id == "sequence":
        return [_value(child, (*path, str(index)), document, (*above, node)) for index, child in enumerate(node.value)]
    if node.id == "mapping":
        return _mapping(node, path, document, (*above, node))
    return read_scalar(node.value) if node.style is None else node.value


def _mapping(node: Any, path: KeyPath, document: Document, above: tuple[Any, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        at = _start(key_node, document.source)
        if key_node.id != "scalar":
            document.problems.append(RecipeProblem(at, ".".join(path), "a key must be a plain word"))
            continue
        key = str(key_node.value)
        child_path = (*path, key)
        if key in result:
            first = document.keys[child_path]
            message = f"the same key a second time (first at line {first.line}); remove one of the two"
            document.problems.append(RecipeProblem(at, ".".join(child_path), message))
            continue
        document.keys[child_path] = at
        result[key] = _value(child, child_path, document, above)
    return result
