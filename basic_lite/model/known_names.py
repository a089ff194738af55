"""The models whose configurations come with the package: those of the shipped recipes."""

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_KNOWN = Path(__file__).parent / "known_models.json"
# How alike a name must be, without its owner: `llava-1.5-7b` is near `llava-1.5-7b-hf`.
_ALIKE = 0.75


def known_models() -> dict[str, dict[str, Any]]:
    """Hub name → what is known of the model."""
    known: dict[str, dict[str, Any]] = json.loads(_KNOWN.read_text(encoding="utf-8"))
    return known


def nearest_known(name: str) -> str | None:
    """The known model that is spelled most like a name, whoever it is from; None: none is near, or it is one."""
    wanted = Path(name).name.lower()[:100]
    known = {Path(one).name.lower(): one for one in known_models()}
    # With a number of its own it is another model: 13b is no slip of 7b.
    known = {short: one for short, one in known.items() if _numbers(wanted) <= _numbers(short)}
    near = get_close_matches(wanted, known, 1, _ALIKE)
    return known[near[0]] if near and known[near[0]] != name else None


def _numbers(name: str) -> set[str]:
    return set(re.findall(r"\d+", name))
