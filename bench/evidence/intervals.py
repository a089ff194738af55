"""Paired differences with 95 % intervals: over seeds (t), and over held-out samples (bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

# Student's t at 97.5 %, by degrees of freedom from 1 up; beyond the table the last is a little too wide.
T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """A mean difference and its 95 % interval; no interval (NaN) where one value is all there is."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0

    def text(self, digits: int = 3) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.{digits}f}"
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]{' *' if self.clear else ''}"


def over_seeds(differences: Sequence[float]) -> Interval:
    """The mean difference of seeds that both sides have, with Student's t."""
    mean, count = fmean(differences), len(differences)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = T[min(count - 2, len(T) - 1)] * stdev(differences) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def over_samples(differences: np.ndarray, weights: np.ndarray, seed: int = 0) -> Interval:
    """The weighted mean of differences by sample, with a percentile bootstrap.

    Args:
        differences, weights: [n] float; a loss has its tokens as weights, a score has ones.
    """
    drawn = np.random.default_rng(seed).integers(0, len(differences), (DRAWS, len(differences)))
    means = (differences * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float((differences * weights).sum() / weights.sum()), float(low), float(high))
