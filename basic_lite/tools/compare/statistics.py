"""Differences of scores on the same questions: a paired bootstrap, over runs too, and McNemar's test."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from basic_lite.resampling import RESAMPLES, SEED, Interval, middle

# With more questions that one side alone has right, McNemar's exact test and the normal distribution agree.
EXACT = 1000
# Draws at a time: of 100,000 questions they take 80 MB.
_CHUNK = 100


@dataclass(frozen=True)
class McNemar:
    """Questions that one run alone has right, and how likely so uneven a split is where both are as good.

    Attributes:
        first, second: questions that the first alone, and the second alone, has right.
        p: of a split as uneven or more, to either side.
    """

    first: int
    second: int
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's test: exact (binomial, two sides) up to ``EXACT`` questions, beyond with the continuity correction.

    Args:
        first, second: [n], whether each question's answer is right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        p = 1.0
    elif n <= EXACT:
        p = min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)
    else:
        p = math.erfc(max(0, n - 2 * least - 1) / math.sqrt(2 * n))
    return McNemar(only_first, only_second, p)


def mean_interval(scores: NDArray[np.float64]) -> Interval:
    """The mean of runs' scores, with the middle 95 % of draws of questions and of runs.

    Args:
        scores: [runs, n].
    """
    return _interval(scores, np.zeros((1, scores.shape[1])))


def difference(scores: NDArray[np.float64], base: NDArray[np.float64]) -> Interval:
    """Mean of ``scores`` minus mean of ``base``, with the middle 95 % of draws.

    A draw takes as many questions as there are, with replacement and the same on both sides, and of each side as many
    runs as it has.

    Args:
        scores: [runs, n].
        base: [other runs, n], of the same questions.
    """
    return _interval(scores, base)


def _interval(scores: NDArray[np.float64], base: NDArray[np.float64]) -> Interval:
    # Questions with the same scores in all runs are of one kind, and drawn together.
    both = np.concatenate([scores, base])  # [runs of both, n]
    kinds, counts = np.unique(both, axis=1, return_counts=True)
    total, generator = int(counts.sum()), np.random.default_rng(SEED)
    gains = []
    for start in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - start)
        drawn = generator.multinomial(total, counts / total, size=size)  # [size, kinds]
        means = drawn @ kinds.T / total  # [size, runs of both]
        own, other = means[:, : len(scores)], means[:, len(scores) :]
        gains.append(_drawn_runs(own, generator) - _drawn_runs(other, generator))
    return Interval(float(scores.mean() - base.mean()), *middle(np.concatenate(gains)))


def _drawn_runs(means: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """[draws, runs] → [draws]: the mean of as many runs, drawn with replacement."""
    runs = means.shape[1]
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=len(means))
    mean: NDArray[np.float64] = (means * weights).sum(axis=1) / runs
    return mean
