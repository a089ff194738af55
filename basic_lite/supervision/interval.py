"""Is one score above another? A 95 % interval from a paired bootstrap over the samples that both were measured on."""

import numpy as np
from numpy.typing import NDArray

from basic_lite.resampling import Interval, draws_of, middle


def score_gains(matches: NDArray[np.float64]) -> list[Interval]:
    """score(place) − score(first place), for each place after the first; none for fewer than two samples.

    Score: own share (mean of the diagonal) minus control (mean over pairs of two samples). In a draw with counts c,
    sample i counts c_i times and the pair i ≠ j c_i c_j times. A sample is never its own control.

    Args:
        matches: [P, n, n]; at each place, the share of sample i's patches whose nearest word is in text j.
    """
    count = matches.shape[1]
    if count < 2:
        return []
    draws = draws_of(np.ones(count, np.int64))
    pairs = count**2 - np.square(draws).sum(axis=1)
    draws, pairs = draws[pairs > 0].astype(np.float64), pairs[pairs > 0]  # without pairs there is no control
    return [_gain(place - matches[0], draws, pairs) for place in matches[1:]]


def _gain(change: NDArray[np.float64], draws: NDArray[np.float64], pairs: NDArray[np.int64]) -> Interval:
    """The gain of one place.

    Args:
        change: [n, n], the place's matches minus the first place's.
        draws: [R, n], how often each draw has each sample.
        pairs: [R], ordered pairs of two different samples in each draw.
    """
    count = len(change)
    own = np.diagonal(change)
    others = change - np.diag(own)
    gains = draws @ own / count - ((draws @ others) * draws).sum(axis=1) / pairs
    return Interval(float(own.mean() - others.sum() / (count * (count - 1))), *middle(gains))
