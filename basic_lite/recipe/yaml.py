"""YAML text to plain values, each with the line and column it stands at, and plain values to YAML text.

The node tree of ruamel.yaml is walked here, so that duplicate keys and odd tags are reported beside all else that is
wrong with a recipe, and so that a scalar means the same whatever YAML version a file declares: ``2e-5`` is a number,
``off`` and ``yes`` are texts (the core schema of YAML 1.2). What is written, every reader of YAML 1.1 or 1.2 takes for
the same values.
"""

import io
import itertools
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ReusedAnchorWarning
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node
from ruamel.yaml.representer import SafeRepresenter

from basic_lite.recipe.not_yaml import indented_by, why_not_yaml
from basic_lite.recipe.problems import KeyPath, Place, RecipeProblem, Wrong, plain

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_TAGS = ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
# Characters, values and nested brackets of a recipe, which is read at some 100,000 characters a second.
_MOST_OF_TEXT, _MOST_VALUES, _DEEPEST = 200_000, 20_000, 100


class _TooManyValues(Exception):
    """Aliases of aliases stand for far more values than the text has."""


@dataclass
class Document:
    """Plain values with their places. ``values`` is None when the text could not be read as keys at all."""

    source: str
    values: dict[str, Any] | None = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[RecipeProblem] = field(default_factory=list)
    blank: set[KeyPath] = field(default_factory=set)  # with nothing behind the colon, as no written null is

    def place_of(self, path: KeyPath, *, key: bool = False) -> Place:
        """Place of the value (or the key) at ``path``; where that isn't written, of the section above it."""
        own = self.keys if key else self.places
        if path in own:
            return own[path]
        for length in range(len(path), 0, -1):
            if path[:length] in self.keys:
                return self.keys[path[:length]]
        return Place.in_file(self.source, 1, 1)

    def report(self, place: Place, path: KeyPath, message: str) -> Wrong:
        """Note a problem; gives what stands in the place of the value that has it."""
        self.problems.append(RecipeProblem(place, ".".join(path), message))
        return Wrong()


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
    top = Place.in_file(source, 1, 1)
    if len(text) > _MOST_OF_TEXT:
        document.report(top, (), f"{len(text):,} characters are too many for a recipe; name its own file")
        return document
    try:
        # How deep brackets are nested; those in texts and comments count too.
        steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
        if max(itertools.accumulate(steps), default=0) > _DEEPEST:
            raise RecursionError
        with warnings.catch_warnings():
            # YAML allows a name that is given twice, and takes the later one.
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            root = YAML(typ="safe", pure=True).compose(text)
        value = None if root is None else _value(root, (), document, ())
    except RecursionError:
        document.report(top, (), "brackets nested too deeply to be a recipe; take some out")
    except _TooManyValues:
        document.report(
            top, (), f"it has more than {_MOST_VALUES:,} values, with those that aliases stand for; take aliases out"
        )
    except YAMLError as error:
        line, column, reason = why_not_yaml(error, text)
        document.report(Place.in_file(source, line, column), (), f"not valid YAML: {reason}")
    else:
        if root is None:
            document.report(top, (), "the file holds no keys; copy a shipped recipe to start from")
            return document
        if isinstance(value, dict):
            document.values = value
        elif not isinstance(value, Wrong):
            what = f"expected keys with values (`name: ...`), found {plain(value)}"
            document.report(_start(root, source), (), what)
    return document


def _start(node: Any, source: str) -> Place:
    return Place.in_file(source, node.start_mark.line + 1, node.start_mark.column + 1)


def _value(node: Any, path: KeyPath, document: Document, above: tuple[Any, ...]) -> Any:
    """The plain value of a node; fills in places. ``above``: the nodes on the way here, to see a cycle."""
    place = _start(node, document.source)
    document.places[path] = place
    if len(document.places) > _MOST_VALUES:
        raise _TooManyValues
    if any(node is other for other in above):
        return document.report(place, path, "an alias that contains itself; write its value out")
    tag = str(node.tag)
    if not tag.startswith("tag:yaml.org,2002:") or tag.rpartition(":")[2] not in _CORE_TAGS:
        return document.report(place, path, f"recipes have no YAML tags, found {tag}; leave it out")
    if node.id == "sequence":
        return [_value(child, (*path, str(index)), document, (*above, node)) for index, child in enumerate(node.value)]
    if node.id == "mapping":
        return _mapping(node, path, document, (*above, node))
    if node.style is None and not node.value:
        document.blank.add(path)
    return read_scalar(node.value) if node.style is None else node.value


def _mapping(node: Any, path: KeyPath, document: Document, above: tuple[Any, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        at = _start(key_node, document.source)
        if key_node.id != "scalar":
            document.report(at, path, "a key must be a plain word")
            continue
        key = str(key_node.value)
        if key_node.style is None and key[:1].isspace():
            document.report(at, path, f"line {at.line} {indented_by(key[0])}")
            continue
        child_path = (*path, key)
        if key in result:
            line = document.keys[child_path].line
            document.report(at, child_path, f"the same key a second time (first at line {line}); remove one of the two")
            continue
        document.keys[child_path] = at
        result[key] = _value(child, child_path, document, above)
    return result


# Words that some YAML reader or other takes for something else than text.
_RESERVED = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|\.inf|\.nan)")
_PLAIN_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


class _Representer(SafeRepresenter):
    """ruamel.yaml's, with texts quoted where a reader may take them for something else, and short lists in a line."""

    def ignore_aliases(self, data: Any) -> bool:
        """A list that stands twice is written twice."""
        return True

    def text(self, data: str) -> Node:
        """A word as it is, any other text in double quotes."""
        plain = _PLAIN_TEXT.fullmatch(data) and not _RESERVED.fullmatch(data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')

    def number(self, data: float) -> Node:
        """YAML 1.1 wants a dot in a number with an exponent."""
        text = self.represent_float(data).value
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")
        return self.represent_scalar("tag:yaml.org,2002:float", text)

    def list_(self, data: list[Any] | tuple[Any, ...]) -> Node:
        """Sections one below the other, other entries in one line."""
        flow = not any(isinstance(entry, dict) for entry in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(float, _Representer.number)
_Representer.add_representer(list, _Representer.list_)
_Representer.add_representer(tuple, _Representer.list_)


def write_yaml(values: dict[str, Any]) -> str:
    """YAML text of nested keys, lists and scalars, in order; ``read_document`` reads back the same."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 2**31  # a value is never broken into lines
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()
