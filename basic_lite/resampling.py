"""What intervals have in common: their type, and the random draws of the samples at hand. No torch is needed here.

Each draw gives a score, or a difference of two, and the interval holds the middle 95 % of them. The draws have a
generator of their own with a fixed seed.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
# With fewer samples the interval is too narrow: a draw can't hold what none of them shows.
LEAST_SAMPLES = 16

Verdict = Literal["holds", "fails", "can't tell"]


def signed(value: float) -> str:
    """A difference as log and tables show it; what rounds to 0 has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}"


class Interval(NamedTuple):
    """A difference of two scores and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """As log and tables show it."""
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]"

    def verdict(self, samples: int) -> Verdict:
        """Whether the difference is above 0 beyond doubt (``holds``), below it (``fails``), or neither."""
        if samples < LEAST_SAMPLES or not (self.low > 0 or self.high < 0):  # NaN is neither
            return "can't tell"
        return "holds" if self.low > 0 else "fails"


def draws_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[RESAMPLES, kinds] of each draw, how often it has each kind of sample; ``counts``: how many there are of each."""
    total = int(counts.sum())
    return np.random.default_rng(SEED).multinomial(total, counts / total, size=RESAMPLES)


def middle(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 % of some draws' values."""
    # Rounded, so that draws without any change give 0, not 1e-18 above or below it.
    low, high = np.quantile(values.round(12), [0.025, 0.975])
    return float(low), float(high)
