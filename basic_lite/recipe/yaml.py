"""YAML text to plain values, each with the line and column it stands at.

The node tree of ruamel.yaml is walked here, so that duplicate keys and odd tags are reported beside all else
that is wrong with a recipe, and so that a scalar means the same whatever YAML version a file declares:
``2e-5`` is a number, ``off`` and ``yes`` are texts (the core schema of YAML 1.2).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

KeyPath = tuple[str, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_TAGS = ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")


class Wrong:
    """Stands for a value that is missing or wrong and has been reported."""


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: 1-based line and column of a file; ``line == 0`` is the command line."""

    rank: int
    line: int
    column: int
    source: str

    @classmethod
    def in_file(cls, source: str, line: int, column: int) -> Place:
        return cls(0, line, column, source)

    @classmethod
    def on_command_line(cls, number: int) -> Place:
        return cls(1, 0, number, "command line")

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class RecipeProblem:
    """One thing wrong with a recipe: where, at which key (empty: no certain one), and what, with its mend."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"


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
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    document = Document(source)
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place.in_file(source, mark.line + 1, mark.column + 1) if mark else Place.in_file(source, 1, 1)
        while_doing = f" {error.context}" if error.context else ""
        mend = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        document.problems.append(RecipeProblem(place, "", f"not valid YAML{while_doing}: {error.problem}{mend}"))
        return document
    except RecursionError:
        document.problems.append(
            RecipeProblem(Place.in_file(source, 1, 1), "", "brackets nested too deeply to be a recipe")
        )
        return document
    except YAMLError as error:
        # A character YAML doesn't allow: the reader knows its position in the text, not its line.
        position = getattr(error, "position", 0)
        before = text[:position]
        place = Place.in_file(source, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
        reason = getattr(error, "reason", None) or str(error)
        document.problems.append(RecipeProblem(place, "", f"not valid YAML: {reason}"))
        return document
    if root is None:
        document.problems.append(
            RecipeProblem(
                Place.in_file(source, 1, 1), "", "the file holds no keys; copy a shipped recipe to start from"
            )
        )
        return document
    value = _value(root, (), document, ())
    if isinstance(value, dict):
        document.values = value
    elif not isinstance(value, Wrong):
        place = Place.in_file(source, root.start_mark.line + 1, root.start_mark.column + 1)
        message = f"expected keys with values (`name: ...`), found {plain(value)}"
        document.problems.append(RecipeProblem(place, "", message))
    return document


def _value(node: Any, path: KeyPath, document: Document, above: tuple[Any, ...]) -> Any:
    """The plain value of a node; fills in places. ``above``: the nodes on the way here, to see a cycle."""
    place = Place.in_file(document.source, node.start_mark.line + 1, node.start_mark.column + 1)
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
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            at = Place.in_file(document.source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if key_node.id != "scalar":
                document.problems.append(RecipeProblem(at, dotted, "a key must be a plain word"))
                continue
            key = str(key_node.value)
            child_path = (*path, key)
            if key in result:
                first = document.keys[child_path]
                message = f"the same key a second time (first at line {first.line}); remove one of the two"
                document.problems.append(RecipeProblem(at, ".".join(child_path), message))
                continue
            document.keys[child_path] = at
            result[key] = _value(child, child_path, document, (*above, node))
        return result
    return read_scalar(node.value) if node.style is None else node.value


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


def plain(value: Any) -> str:
    """A value in plain words, for messages: "the text '3e-4 '", "the number 3", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if value else "an empty text"
    if isinstance(value, dict):
        return (
            f"keys ({', '.join(map(str, list(value)[:3]))}{', ...' if len(value) > 3 else ''})" if value else "no keys"
        )
    return "a list" if value else "an empty list"


# Words that some YAML reader or other takes for something else than text.
_RESERVED = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|\.inf|\.nan)")
_PLAIN_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


def write_scalar(value: str | int | float | bool | None) -> str:
    """The YAML text of a scalar that every YAML reader, 1.1 or 1.2, takes for the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return f"{value}".replace("inf", ".inf").replace("nan", ".nan")
        text = repr(value)
        # YAML 1.1 wants a dot in a number with an exponent.
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    if _PLAIN_TEXT.fullmatch(value) and not _RESERVED.fullmatch(value):
        return value
    escaped = "".join(_escape(character) for character in value)
    return f'"{escaped}"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def write_yaml(values: dict[str, Any]) -> str:
    """YAML text of nested keys, lists and scalars, in order; :func:`read_document` reads back the same."""
    return "".join(line + "\n" for line in _lines(values))


def _lines(values: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in values.items():
        name = write_scalar(key)
        if isinstance(value, dict) and value:
            lines += [f"{name}:", *(f"  {line}" for line in _lines(value))]
        elif isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
            lines.append(f"{name}:")
            for entry in value:
                first, *rest = _lines(entry)
                lines += [f"  - {first}", *(f"    {line}" for line in rest)]
        elif isinstance(value, list | tuple):
            lines.append(f"{name}: [{', '.join(write_scalar(entry) for entry in value)}]")
        else:
            lines.append(f"{name}: {'{}' if isinstance(value, dict) else write_scalar(value)}")
    return lines
