"""McNemar's test: of the questions that one run alone has right, is the split uneven beyond chance?"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# With more questions that one side alone has right, McNemar's exact test and the normal distribution agree.
EXACT = 1000


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
