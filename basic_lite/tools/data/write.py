"""A recipe that is written for data: its place, its name, its text with other values in it and its comments kept."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from basic_lite.choices import require_file_place
from basic_lite.errors import UserError
from basic_lite.recipe.combinations import is_device
from basic_lite.recipe.schema import SourceSection

# A text that every reader takes for a text without quotes.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_NOT_TEXT = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null)")


def recipe_text(base: str, head: Sequence[str], changes: Mapping[str, Any]) -> str:
    """A recipe's text under another head, with changed values.

    Args:
        base: text of the recipe; the comments before its first key are left out.
        head: comment lines, without their sign.
        changes: dotted keys to values; None removes the key.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31  # a value is never broken into lines
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load("".join(_body(base)))
    for dotted, value in changes.items():
        _set(document, dotted.split("."), value)
    out = io.StringIO()
    yaml.dump(document, out)
    # A section whose last value was replaced has lost the empty line after it.
    text = re.sub(r"(?m)^((?!#).*\S.*)\n(?=\w+:(?: *#.*)?\n +\w)", r"\1\n\n", out.getvalue())
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + "\n" + text


def require_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where no recipe can be written, or where a file is.

    Args:
        overwrite: a file that is there is replaced.

    Raises:
        UserError: with what mends it.
    """
    require_file_place(path, "photos.yaml")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; add --overwrite to replace it, or name another file with --out")


def head_of(base: str) -> list[str]:
    """The comment lines before a recipe's first key, without their sign."""
    lines = base.splitlines(keepends=True)
    return [
        line[1:].strip("\n").removeprefix(" ") for line in lines[: len(lines) - len(_body(base))] if line[:1] == "#"
    ]


def _body(base: str) -> list[str]:
    lines = base.removeprefix("\ufeff").splitlines(keepends=True)
    first = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return lines[first:]


def _set(document: Any, path: Sequence[str], value: Any) -> None:
    *above, last = path
    holder = document
    for key in above:
        if value is None and holder.get(key) is None:
            return
        if not isinstance(holder.get(key), dict):
            holder[key] = {}
        holder = holder[key]
    if value is None:
        holder.pop(last, None)
        return
    holder[last] = _quoted(value)
    # A comment beside the old value says something of that; what stands on the lines below it stays.
    tokens = getattr(holder, "ca", None) and holder.ca.items.get(last)
    if tokens and tokens[2] is not None:
        _, newline, below = tokens[2].value.partition("\n")
        tokens[2].value = newline + below


def _quoted(value: Any) -> Any:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value)
        return value if plain else DoubleQuotedScalarString(value)
    if isinstance(value, dict):
        return {_quoted(key): _quoted(one) for key, one in value.items()}
    return [_quoted(one) for one in value] if isinstance(value, (list, tuple)) else value


def legal_name(path: Path) -> str:
    """A name for a run, from that of a file or folder: one that every system takes for a folder."""
    path = path.absolute().resolve()
    name = re.sub(r"[^\w.-]+", "_", path.name if path.is_dir() else path.stem).strip("._-")
    return f"{name}_data" if is_device(name) else name or "my_data"


def from_here(section: SourceSection) -> SourceSection:
    """A source whose paths inside the current folder are relative to it; all have forward slashes."""
    paths = {key: getattr(section, key) for key in ("path", "folder", "parquet", "saved", "image_dir")}
    return section.model_copy(update={key: _relative(path) for key, path in paths.items() if path is not None})


def _relative(path: str) -> str:
    here = Path.cwd()
    if not os.path.isabs(path):
        return Path(os.path.normpath(path)).as_posix()
    return (Path(path).relative_to(here) if Path(path).is_relative_to(here) else Path(path)).as_posix()
