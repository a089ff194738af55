"""The probe's numbers and words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from basic_lite.resampling import RESAMPLES, SEED, Interval
from basic_lite.training.text_probe.outcome import Change, NoOutcome, Outcome, Scores, compared, outcome_from

RANDOM = np.random.default_rng(1)
SIZES = [int(size) for size in RANDOM.integers(200, 600, 30)]


def outcome(worse: float, lost: int, won: int = 0) -> Outcome:
    """Texts that need some more bits a byte, of 100 questions some lost and won."""
    bits = np.asarray(SIZES) * 1.0
    right = np.asarray([1.0] * 70 + [0.0] * 30)
    after = right.copy()
    after[:lost] = 0
    after[70 : 70 + won] = 1
    more = bits * (1 + worse * (1 + 0.1 * np.random.default_rng(2).standard_normal(30)))
    kinds = ["a"] * 10 + ["b"] * 20, ["c"] * 50 + ["d"] * 50
    return compared(Scores(bits, right), Scores(more, after), SIZES, *kinds, 3)


def test_bits_are_over_all_bytes_and_drawn_in_pairs() -> None:
    before, after = RANDOM.random(30) * 400, RANDOM.random(30) * 400
    right = np.ones(20)
    found = compared(Scores(before, right), Scores(after, right), SIZES, ["a"] * 30, ["b"] * 20, 0).bits
    assert (found.before, found.after) == pytest.approx((before.sum() / sum(SIZES), after.sum() / sum(SIZES)))
    draws = np.random.default_rng(SEED).multinomial(30, [1 / 30] * 30, size=RESAMPLES)
    naive = []
    for draw in draws:
        texts = np.repeat(np.arange(30), draw)
        size = sum(SIZES[i] for i in texts)
        naive.append(after[texts].sum() / size - before[texts].sum() / size)
    assert found.difference == pytest.approx((found.after - found.before, *np.quantile(naive, [0.025, 0.975])))


def test_kinds_are_parts_of_the_whole() -> None:
    found = outcome(0.1, 20)
    texts, asked = [[one for one in found.kinds if one.of == of] for of in ("texts", "questions")]
    assert [(one.name, one.n) for one in [*texts, *asked]] == [("a", 10), ("b", 20), ("c", 50), ("d", 50)]
    sizes = [sum(SIZES[:10]), sum(SIZES[10:])]
    assert np.average([one.after for one in texts], weights=sizes) == pytest.approx(found.bits.after)
    assert [one.before for one in asked] == [1.0, 0.4] and [one.after for one in asked] == [0.6, 0.4]


@pytest.mark.parametrize(
    "worse, lost, won, verdict, words",
    [
        (
            0.1,
            20,
            0,
            "fell",
            ["fell by 20.0 [12.3, 27.9] points", "worse by 0.0", "50.0% of 100 questions right, 70.0%"],
        ),
        (-0.1, 0, 20, "rose", ["rose by 20.0 [11.9, 28.4] points", "better by 0."]),
        (0.1, 3, 3, "fell", ["no clear change: +0.0 [-", "worse by 0."]),
        (0.1, 0, 20, "changed", ["rose by", "worse by"]),
    ],
)
def test_words_follow_the_intervals(worse: float, lost: int, won: int, verdict: str, words: list[str]) -> None:
    found = outcome(worse, lost, won)
    assert found.verdict == verdict and f"ability with text {verdict}: " in found.text
    assert all(word in found.text for word in words), found.text
    assert "3 that its tokenizer can't write were left out" in found.text


def test_no_change_is_said_in_two_ways() -> None:
    same = outcome(0, 0)
    assert same.verdict == "did not change at all" and "+0.000 [+0.000, +0.000]" in same.text
    unclear = outcome(0, 2, 3)
    assert unclear.verdict == "shows no clear change" and "%)" not in unclear.text
    few = Change(15, 1.0, 2.0, Interval(1.0, 0.5, 1.5))
    assert few.direction == 0


def test_a_log_gives_it_back() -> None:
    found = outcome(0.1, 20)
    assert outcome_from(json.loads(json.dumps(found.to_dict()))) == found
    none = NoOutcome("why not")
    assert outcome_from(json.loads(json.dumps(none.to_dict()))) == none
    for damaged in (None, 3, "why", [], {}, {"bits": 1}, {**found.to_dict(), "right": {}}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            outcome_from(damaged)
