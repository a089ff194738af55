"""Is one score above another? A 95 % interval from a paired bootstrap over the samples that both were measured on.

The samples at hand are drawn anew, with replacement, many times. Each draw gives a difference of the two scores, and
the interval holds the middle 95 % of them. The draws have a generator of their own with a fixed seed.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
# With fewer samples the interval is too narrow: a draw can't hold what none of them shows.
LEAST_SAMPLES = 16

Verdict = Literal["holds", "fails", "can't tell"]


class Interval(NamedTuple):
    """A difference of two scores and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """As log and tables show it."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def verdict(self, samples: int) -> Verdict:
        """Whether the difference is above 0 beyond doubt (``holds``), below it (``fails``), or neither."""
        if samples < LEAST_SAMPLES or self.low <= 0 <= self.high:
            return "can't tell"
        return "holds" if self.low > 0 else "fails"


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
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
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
    # Rounded, so that draws without any change give 0, not 1e-18 above or below it.
    low, high = np.quantile(gains.round(12), [0.025, 0.975])
    return Interval(float(own.mean() - others.sum() / (count * (count - 1))), float(low), float(high))
