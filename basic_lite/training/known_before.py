"""How much of a run's own evaluation data is trained on, as its ``data.json`` says. No torch is needed here."""

from pathlib import Path
from typing import Any

from basic_lite.outside import as_object
from basic_lite.training.places import DATA, read_json

# Said of a score.
UNKNOWN = "not known if trained on"


def known_before(run: Path) -> str:
    """What a run's evaluation data is, beside what it was trained on; nothing where all of it is new."""
    told = _told(run)
    met = met_before(run)
    counts = list(_counts(told).values())
    unknown = told.get("known") is not True and any(one[0] < one[1] for one in counts or [(0, 1)])
    return ", ".join(text for text in (met, UNKNOWN if unknown else "") if text)


def met_before(run: Path) -> str:
    """How many of its pictures and texts are known to be trained on; nothing where none is."""
    return ", ".join(f"{met} of {of} {name} trained on" for name, (met, of) in _counts(_told(run)).items() if met)


def _told(run: Path) -> dict[str, Any]:
    return as_object(as_object(as_object(read_json(run / DATA)).get("eval")).get("trained_on"))


def _counts(told: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Name → how many are trained on, and of how many. What somebody changed is passed over."""
    return {name: (one[0], one[1]) for name, one in as_object(told.get("of")).items() if _is_counts(one)}


def _is_counts(counts: Any) -> bool:
    return isinstance(counts, list) and len(counts) == 2 and all(isinstance(one, int) for one in counts)
