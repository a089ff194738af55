"""McNemar's test against counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from basic_lite.tools.compare.mcnemar import EXACT, mcnemar


def test_mcnemar_counts_every_way_to_split_the_questions() -> None:
    """By enumeration: each of the questions that one alone has right is the one's or the other's, by a fair coin."""
    for first, second in [(0, 0), (1, 0), (3, 1), (2, 2), (9, 1), (0, 12)]:
        n = first + second
        ways = list(itertools.product((0, 1), repeat=n))
        as_uneven = sum(abs(2 * sum(way) - n) >= abs(first - second) for way in ways) / len(ways)
        a = np.array([True] * first + [False] * second + [True, True, False])
        b = np.array([False] * first + [True] * second + [True, True, False])
        found = mcnemar(a, b)
        assert (found.first, found.second) == (first, second) and found.p == pytest.approx(as_uneven)
        assert mcnemar(b, a).p == found.p


def test_mcnemar_of_many_is_the_exact_one_but_for_rounding() -> None:
    """Of 1,100 questions, 600 to 500: the two-sided binomial, summed exactly in whole numbers, is 0.00283."""
    n, least = 1100, 500
    exact = 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    assert n > EXACT
    a = np.array([True] * 600 + [False] * 500)
    assert mcnemar(a, ~a).p == pytest.approx(exact, rel=0.02)
    assert mcnemar(a[:200], ~a[:200]).p == pytest.approx(2 / 2**200)
