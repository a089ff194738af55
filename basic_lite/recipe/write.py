"""Plain values to YAML text that every reader, of YAML 1.1 or 1.2, takes for the same values."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import Node
from ruamel.yaml.representer import SafeRepresenter

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
