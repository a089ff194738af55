"""McNemar's test and the paired bootstrap, against counting by hand and by the thousand."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from basic_lite.tools.compare.statistics import EXACT, difference, mcnemar, mean_interval


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


def naive(scores: list[list[float]], base: list[list[float]], draws: int) -> tuple[float, float]:
    """Draw questions and runs one by one."""
    chance, found = random.Random(1), []
    n = len(scores[0])
    for _ in range(draws):
        places = [chance.randrange(n) for _ in range(n)]
        means = []
        for side in (scores, base):
            runs = [chance.choice(side) for _ in side]
            means.append(sum(run[at] for run in runs for at in places) / (len(runs) * n))
        found.append(means[0] - means[1])
    found.sort()
    return found[round(0.025 * draws)], found[round(0.975 * draws)]


@pytest.mark.parametrize("runs", [(1, 1), (3, 2)])
def test_the_interval_is_that_of_drawing_one_by_one(runs: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    hard = generator.random(60)  # the questions differ in how hard they are, so pairing matters
    scores, base = (
        (generator.random((count, 60)) < hard + gain).astype(float) for count, gain in zip(runs, (0.1, 0), strict=True)
    )
    found = difference(scores, base)
    low, high = naive(scores.tolist(), base.tolist(), 3000)
    assert found.value == pytest.approx(scores.mean() - base.mean())
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)
    assert difference(base, scores).value == -found.value


def test_pairs_are_drawn_together() -> None:
    """One that is right wherever the other is, and on one more question in ten, is better beyond doubt."""
    base = np.array([[0.0, 1.0] * 100])
    better = base.copy()
    better[0, :40:2] = 1
    assert difference(better, base).low > 0.05 and difference(base, base) == (0, 0, 0)


def test_the_interval_of_a_mean_is_the_binomials() -> None:
    scores = np.array([[1.0] * 300 + [0.0] * 700])
    found, half = mean_interval(scores), 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=0.004), pytest.approx(0.3 + half, abs=0.004))


def test_partial_scores_and_runs_that_differ_widen_it() -> None:
    one, other = np.full((2, 50), 0.5), np.array([[0.2] * 50, [0.8] * 50])
    assert mean_interval(one)[1:] == (0.5, 0.5)
    found = mean_interval(other)
    assert found.low == pytest.approx(0.2) and found.high == pytest.approx(0.8)
