"""Intervals of scores: how often they hold the true value, and what the literature has."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from basic_lite import intervals
from basic_lite.intervals import difference, f1_interval, mean_interval, refinement_gains, wilson
from basic_lite.resampling import LEAST_SAMPLES, RESAMPLES, SEED, Interval

PARTIAL = np.array([0, 0.3, 0.6, 0.9, 1])
# How likely each of these scores is: in the middle, high, and near the border.
MIDDLE, HIGH, BORDER = (0.3, 0.1, 0.1, 0.1, 0.4), (0.03, 0.01, 0.02, 0.04, 0.9), (0.02, 0, 0, 0.03, 0.95)


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def share_coverage(n: int, p: float) -> float:
    """Exact: over all numbers of right answers."""
    ends = {right: wilson(right, n) for right in range(n + 1)}
    return sum(binomial(k, n, p) for k, (low, high) in ends.items() if low - 1e-9 <= p <= high + 1e-9)


def f1_coverage(n: int, f1: float) -> float:
    """Exact; half of the questions are to be answered "no", and are, so that they don't count."""
    found, share = 0.0, f1 / (2 - f1)
    for counted in range(n + 1):
        for hits in range(counted + 1):
            low, high = f1_interval(hits, counted - hits) if counted else (0, 1)
            found += binomial(counted, n, 0.5) * binomial(hits, counted, share) * (low - 1e-9 <= f1 <= high + 1e-9)
    return found


def difference_coverage(n: int, better: float, worse: float) -> float:
    """Of questions that one side alone has right so often, and the other; exact but for what happens once in 10,000."""
    found, seen = 0.0, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = binomial(b, n, better) * binomial(c, n - b, worse / (1 - better))
            if chance > 1e-4 / n:
                one, other = (np.arange(n) < b)[None], ((np.arange(n) >= b) & (np.arange(n) < b + c))[None]
                _, low, high = difference(one.astype(float), other.astype(float))
                found += chance * (low - 1e-9 <= better - worse <= high + 1e-9)
                seen += chance
    return found / seen


def mean_coverage(n: int, chances: tuple[float, ...], tries: int) -> float:
    """By drawing."""
    draw, held = np.random.default_rng(7), 0
    for _ in range(tries):
        _, low, high = mean_interval(draw.choice(PARTIAL, size=(1, n), p=chances))
        held += low <= PARTIAL @ chances <= high
    return held / tries


SHARES, F1S, MEANS = (0.5, 0.9, 1.0), (0.5, 0.9, 1.0), (MIDDLE, HIGH, BORDER)
PAIRS = ((0.25, 0.25), (0.1, 0.1), (0.02, 0.02)), ((0.2, 0.05), (0.1, 0.0), (0.05, 0.0))


def test_they_hold_the_truth_often_enough_where_questions_are_few() -> None:
    """Never far below .95; at 1.0 the truth is always inside, and the interval is more than a point."""
    assert [share_coverage(20, p) for p in SHARES] == pytest.approx([0.959, 0.957, 1.0], abs=0.001)
    assert min(f1_coverage(20, f1) for f1 in F1S) > 0.94
    assert difference_coverage(20, *PAIRS[1][1]) > 0.94  # a plain bootstrap: .88
    assert mean_coverage(20, HIGH, 150) > 0.9  # a plain bootstrap: .70


@pytest.mark.soak
def test_the_table_of_coverage() -> None:
    """What the module's docstring says."""
    for n in (20, 100):
        rows = [[share_coverage(n, p) for p in SHARES], [f1_coverage(n, f1) for f1 in F1S]]
        rows += [[mean_coverage(n, one, 1500) for one in MEANS]]
        rows += [[difference_coverage(n, *pair) for pair in pairs] for pairs in PAIRS]
        print(n, ["; ".join(f"{one:.2f}" for one in row) for row in rows])
        assert min(min(row) for row in rows) > 0.91


def test_nothing_has_an_interval_without_width() -> None:
    """One run that is always right, two that agree in everything, scores that are all alike."""
    same = np.full((1, 20), 0.9)
    for low, high in (f1_interval(20, 0), wilson(20, 20), mean_interval(same)[1:], mean_interval(1 + 0 * same)[1:]):
        assert high - low > 0.05 and 0 <= low < high <= 1
    for one in (same, np.ones((1, 20)), np.zeros((1, 20)), np.ones((3, 20))):
        value, low, high = difference(one, one)
        assert value == 0 and low < -0.05 and high > 0.05
    assert difference(same, same)[1] == pytest.approx(-difference(same, same)[2], abs=0.03)


def test_f1_is_that_of_a_share() -> None:
    """Of 40 hits and 30 misses of either kind the delta method's standard error of F1 is .0479."""
    low, high = f1_interval(40, 30)
    assert (low + high) / 2 == pytest.approx(80 / 110, abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * 0.0479, abs=0.01)


def drawn_one_by_one(scores: NDArray[np.float64], base: NDArray[np.float64], draws: int) -> tuple[float, float]:
    """The same by hand: weights of questions and of the two ends from an exponential draw, runs by lot."""
    chance, found = random.Random(1), []
    for _ in range(draws):
        weights = [chance.expovariate(1) for _ in range(scores.shape[1])]
        up, down = chance.expovariate(1), chance.expovariate(1)
        means = []
        for side, ends in ((scores, up), (base, down)):
            runs = [chance.choice(range(len(side))) for _ in side]
            mean = sum(sum(w * side[run, at] for at, w in enumerate(weights)) for run in runs) / len(runs)
            means.append((mean + ends) / (sum(weights) + up + down))
        found.append(means[0] - means[1])
    found.sort()
    return found[round(0.025 * draws)], found[round(0.975 * draws)]


@pytest.mark.parametrize("runs", [(1, 1), (3, 2)])
def test_the_interval_is_that_of_drawing_one_by_one(runs: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    hard = generator.random(40)  # the questions differ in how hard they are, so pairing matters
    scores, base = (
        (generator.random((count, 40)) < hard + gain).astype(float) for count, gain in zip(runs, (0.1, 0), strict=True)
    )
    found = difference(scores, base)
    low, high = drawn_one_by_one(scores, base, 600)
    assert found.value == pytest.approx(scores.mean() - base.mean())
    assert found.low == pytest.approx(low, abs=0.04) and found.high == pytest.approx(high, abs=0.04)
    assert difference(base, scores).value == -found.value


def test_pairs_are_drawn_together() -> None:
    """One that is right wherever the other is, and on one more question in ten, is better beyond doubt."""
    base = np.array([[0.0, 1.0] * 100])
    better = base.copy()
    better[0, :40:2] = 1
    assert difference(better, base).low > 0.05


def test_the_mean_of_right_and_wrong_answers_is_a_share() -> None:
    assert mean_interval(np.array([[1.0] * 15 + [0.0] * 133]))[1:] == wilson(15, 148)
    partial = mean_interval(np.array([[0.3] * 50 + [0.9] * 50]))
    # The standard error of the mean is .03.
    assert partial[1:] == pytest.approx((0.6 - 1.96 * 0.03, 0.6 + 1.96 * 0.03), abs=0.01)


def test_runs_that_differ_widen_it() -> None:
    one, other = np.full((2, 50), 0.5), np.array([[0.2] * 50, [0.8] * 50])
    alike, apart = mean_interval(one), mean_interval(other)
    assert alike.high - alike.low < 0.1
    assert apart.low == pytest.approx(0.22, abs=0.03) and apart.high == pytest.approx(0.78, abs=0.03)


def score_of(matches: NDArray[np.float64], drawn: list[int]) -> float | None:
    """Own share minus control of the samples that were drawn, one pair at a time; None without a pair."""
    own = [matches[i, i] for i in drawn]
    others = [matches[i, j] for i in drawn for j in drawn if i != j]
    return sum(own) / len(own) - sum(others) / len(others) if others else None


@pytest.mark.parametrize("samples", [16])
def test_intervals_match_a_loop_over_the_same_draws(samples: int) -> None:
    matches = np.random.default_rng(samples).random((3, samples, samples)).round(1)
    found = refinement_gains(matches)
    draws = np.random.default_rng(SEED).multinomial(samples, [1 / samples] * samples, size=RESAMPLES)
    lists = [[i for i in range(samples) for _ in range(counts[i])] for counts in draws]
    for place, gain in enumerate(found, start=1):
        gains = []
        for drawn in lists:
            first, here = score_of(matches[0], drawn), score_of(matches[place], drawn)
            if first is not None and here is not None:
                gains.append(here - first)
        everyone = list(range(samples))
        first, here = score_of(matches[0], everyone), score_of(matches[place], everyone)
        assert first is not None and here is not None
        assert gain.value == pytest.approx(here - first, abs=1e-12)
        assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-11)
        assert gain.low < gain.high
    assert len(found) == 2


def test_about_95_of_100_intervals_hold_the_true_gain() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        matches = generator.normal(0, 0.1, (2, 40, 40))
        matches[1] += np.diag(generator.normal(0.05, 0.1, 40))
        ((_, low, high),) = refinement_gains(matches)
        held += low <= 0.05 <= high
    assert 88 <= held <= 99


def made_matches(draw: np.random.Generator, samples: int, gain: float, share: float) -> NDArray[np.float64]:
    """v and v̂ as `bench.gate_errors` makes them: chances of each sample and pair, 36 patches; some samples gain."""
    chance = draw.beta(0.5, 10, size=(samples, samples))
    own = draw.beta(1, 10, size=samples)
    gained = own + gain * (draw.random(samples) < share)
    looks = [np.where(np.eye(samples, dtype=bool), one[:, None], chance) for one in (own, np.minimum(gained, 1))]
    found: NDArray[np.float64] = draw.binomial(36, np.stack(looks)) / 36
    return found


@pytest.mark.soak
def test_how_many_samples_a_gain_needs_for_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/METHOD.md says: how often the interval holds the true gain, and how often it is off 0 without one."""
    monkeypatch.setattr(intervals, "LEAST_SAMPLES", 2)
    worlds = {"none": (0.0, 1.0), "all .05": (0.05, 1.0), "one in five .25": (0.25, 0.2)}
    rows: dict[int, dict[str, float]] = {}
    for samples in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
        draw, rows[samples] = np.random.default_rng(samples), {}
        for name, (gain, share) in worlds.items():
            found = [refinement_gains(made_matches(draw, samples, gain, share))[0] for _ in range(1000)]
            rows[samples][name] = sum(one.low <= gain * share <= one.high for one in found) / len(found)
        print(samples, rows[samples])
    assert max(rows[3].values()) < 0.8 and min(rows[8].values()) < 0.88 < 0.9 < min(rows[LEAST_SAMPLES].values())


def test_no_change_is_exactly_no_gain() -> None:
    """The draws that miss the one sample that changed give 0, not a rounding error above it."""
    matches = np.random.default_rng(1).random((2, 20, 20))
    matches[1] = matches[0]
    assert refinement_gains(matches) == [Interval(0.0, 0.0, 0.0)]
    matches[1, 3, 3] += 0.5
    ((value, low, high),) = refinement_gains(matches)
    assert low == 0 < value < high


def test_a_verdict_needs_samples_and_an_interval_off_zero() -> None:
    assert Interval(0.02, 0.01, 0.03).verdict(16) == "holds"
    assert Interval(-0.02, -0.03, -0.01).verdict(16) == "fails"
    assert Interval(0.02, 0.0, 0.03).verdict(64) == Interval(-0.02, -0.03, 0.0).verdict(64) == "can't tell"
    assert Interval(0.02, 0.01, 0.03).verdict(15) == Interval(-0.02, -0.03, -0.01).verdict(15) == "can't tell"
    assert Interval(math.nan, math.nan, math.nan).verdict(64) == "can't tell"
    assert Interval(0.0041, -0.01, 0.018).text == "+0.004 [-0.010, +0.018]"


@pytest.mark.parametrize("samples", [0, 1, 3, 15])
def test_too_few_samples_have_no_interval(samples: int) -> None:
    assert refinement_gains(np.random.default_rng(0).random((3, samples, samples))) == []
