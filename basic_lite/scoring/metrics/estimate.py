"""A score with its 95 % interval: a share of right answers, or a mean of partial scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from basic_lite.intervals import mean_interval, wilson


@dataclass(frozen=True)
class Share:
    """How many of ``n`` answers are right."""

    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's (``intervals.py``): what the share among very many such questions may well be."""
        return wilson(self.right, self.n)


@dataclass(frozen=True)
class Mean:
    """The mean score of ``n`` answers, where an answer may be right in part.

    Attributes:
        interval: 95 %, as ``intervals.py`` has it.
    """

    share: float
    n: int
    interval: tuple[float, float]


Estimate = Share | Mean


def estimated(scores: Sequence[float]) -> Estimate:
    """The mean of at least one score: a share where each is 0 or 1."""
    if all(score in (0.0, 1.0) for score in scores):
        return Share(int(sum(scores)), len(scores))
    found = mean_interval(np.asarray([scores]))
    return Mean(found.value, len(scores), (found.low, found.high))


def estimate_json(one: Estimate) -> dict[str, Any]:
    """As summaries have it."""
    right = {"right": one.right} if isinstance(one, Share) else {}
    return {**right, "n": one.n, "share": one.share, "interval_95": one.interval}


def estimate_of(value: Any) -> Estimate | None:
    """What ``estimate_json`` gave; None stays None.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is something else.
    """
    if value is None:
        return None
    n, share = int(value["n"]), float(value["share"])
    low, high = map(float, value["interval_95"])
    right = int(value["right"]) if "right" in value else None
    # A score is from 0 to 1.
    if n < 1 or not (0 <= low <= high <= 1 and 0 <= share <= 1) or not 0 <= (right or 0) <= n:
        raise ValueError("no estimate")
    return Mean(share, n, (low, high)) if right is None else Share(right, n)


def percent(one: Estimate) -> str:
    """In words, with its interval: ``62 % [55, 69]``."""
    low, high = one.interval
    return f"{100 * one.share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
