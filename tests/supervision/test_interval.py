"""The bootstrap's intervals against a loop with the same draws, and what they decide."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from basic_lite.resampling import RESAMPLES, SEED
from basic_lite.supervision import Interval
from basic_lite.supervision.interval import score_gains


def score(matches: NDArray[np.float64], drawn: list[int]) -> float | None:
    """Own share minus control of the samples that were drawn, one pair at a time; None without a pair."""
    own = [matches[i, i] for i in drawn]
    others = [matches[i, j] for i in drawn for j in drawn if i != j]
    return sum(own) / len(own) - sum(others) / len(others) if others else None


@pytest.mark.parametrize("samples", [2, 3, 9])
def test_intervals_match_a_loop_over_the_same_draws(samples: int) -> None:
    matches = np.random.default_rng(samples).random((3, samples, samples)).round(1)
    found = score_gains(matches)
    draws = np.random.default_rng(SEED).multinomial(samples, [1 / samples] * samples, size=RESAMPLES)
    lists = [[i for i in range(samples) for _ in range(counts[i])] for counts in draws]
    for place, gain in enumerate(found, start=1):
        gains = []
        for drawn in lists:
            first, here = score(matches[0], drawn), score(matches[place], drawn)
            if first is not None and here is not None:
                gains.append(here - first)
        everyone = list(range(samples))
        first, here = score(matches[0], everyone), score(matches[place], everyone)
        assert first is not None and here is not None
        assert gain.value == pytest.approx(here - first, abs=1e-12)
        assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-11)
        assert gain.low < gain.high or samples == 2  # of two samples, only one draw has a pair
    assert len(found) == 2


def test_about_95_of_100_intervals_hold_the_true_gain() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        matches = generator.normal(0, 0.1, (2, 40, 40))
        matches[1] += np.diag(generator.normal(0.05, 0.1, 40))
        ((_, low, high),) = score_gains(matches)
        held += low <= 0.05 <= high
    assert 88 <= held <= 99


def test_no_change_is_exactly_no_gain() -> None:
    """The draws that miss the one sample that changed give 0, not a rounding error above it."""
    matches = np.random.default_rng(1).random((2, 20, 20))
    matches[1] = matches[0]
    assert score_gains(matches) == [Interval(0.0, 0.0, 0.0)]
    matches[1, 3, 3] += 0.5
    ((value, low, high),) = score_gains(matches)
    assert low == 0 < value < high


def test_a_verdict_needs_samples_and_an_interval_off_zero() -> None:
    assert Interval(0.02, 0.01, 0.03).verdict(16) == "holds"
    assert Interval(-0.02, -0.03, -0.01).verdict(16) == "fails"
    assert Interval(0.02, 0.0, 0.03).verdict(64) == Interval(-0.02, -0.03, 0.0).verdict(64) == "can't tell"
    assert Interval(0.02, 0.01, 0.03).verdict(15) == Interval(-0.02, -0.03, -0.01).verdict(15) == "can't tell"
    assert Interval(0.0041, -0.01, 0.018).text == "+0.004 [-0.010, +0.018]"


@pytest.mark.parametrize("samples", [0, 1])
def test_one_sample_has_no_control_and_no_gain(samples: int) -> None:
    assert score_gains(np.ones((3, samples, samples))) == []
