"""The models whose configurations come with the package: those of the shipped recipes."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_KNOWN = Path(__file__).parent / "known_models.json"
# How alike a name must be: `llava-1.5-7b` and `vicuna-7b` are near, another family isn't.
_ALIKE = 0.75


def known_models() -> dict[str, dict[str, Any]]:
    """Hub name → what is known of the model."""
    known: dict[str, dict[str, Any]] = json.loads(_KNOWN.read_text(encoding="utf-8"))
    return known


def nearest_known(name: str) -> str | None:
    """The known model that is spelled most like a name, whoever it is from; None: none is near, or it is one."""
    known = {one.rpartition("/")[2].lower(): one for one in known_models()}
    near = get_close_matches(name.rpartition("/")[2].lower()[:100], known, 1, _ALIKE)
    return known[near[0]] if near and known[near[0]] != name else None
