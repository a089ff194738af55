"""The probe's texts: their form, and that nothing but reading them helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np

from basic_lite.intervals import difference
from basic_lite.training.text_probe.outcome import scores_of
from basic_lite.training.text_probe.texts import PASSAGES, QUESTIONS, Question, passages, questions

MOST_BYTES = 60_000


def test_the_files_have_their_form_and_are_small() -> None:
    folder = resources.files("basic_lite.training.text_probe")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in (PASSAGES, QUESTIONS)]
    assert sum(len(text.encode()) for text in texts) <= MOST_BYTES
    rows = [json.loads(text) for text in texts]
    assert {tuple(row) for row in rows[0]} == {("kind", "given", "text")}
    assert {tuple(row) for row in rows[1]} == {("kind", "given", "right", "wrong")}
    for row in [*rows[0], *rows[1]]:
        assert all(row.values()) and row["given"] == row["given"].lstrip()
    # One record a line, so that a change shows in a diff.
    assert all(len(text.splitlines()) == len(found) + 2 for text, found in zip(texts, rows, strict=True))


def test_there_are_enough_of_each_kind() -> None:
    kinds = [one.kind for one in passages()]
    assert len(kinds) >= 40 and min(map(kinds.count, kinds)) >= 5
    kinds = [one.kind for one in questions()]
    assert len(kinds) >= 300 and min(map(kinds.count, kinds)) >= 20


def test_nothing_is_doubled() -> None:
    asked, texts = questions(), passages()
    beginnings = [one.given.casefold() for one in asked]
    assert sorted({*beginnings}) == sorted(beginnings)
    assert len({one.given + one.text for one in texts}) == len(texts)
    sentences = [line for one in texts for line in (one.given + one.text).split(". ") if len(line) > 40]
    assert len({*sentences}) == len(sentences)
    for one in asked:
        assert len({text.strip().casefold() for text in one.continuations}) == len(one.continuations) > 1 or (
            one.kind == "formats" and len({*one.continuations}) == len(one.continuations)
        ), one.given


def test_the_place_of_the_right_one_tells_nothing() -> None:
    """It is the first one in memory. What takes the first of equals, or of numbers that aren't any, gets nothing."""
    same = [[1.0] * len(one.continuations) for one in questions()]
    assert not scores_of([], same).right.any()
    assert not scores_of([], [[float("nan")] * 3, [2.0, 1.0, 3.0], [2.0, 3.0, 1.0]]).right.any()
    assert scores_of([], [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]).right.all()


def share(asked: Sequence[Question], rule: Callable[[str], int]) -> float:
    """How many are right by a rule that doesn't read the beginning; equals share a point."""
    points = 0.0
    for one in asked:
        values = [rule(text) for text in one.continuations]
        points += (values[0] == max(values)) / values.count(max(values))
    return points / len(asked)


def test_lengths_and_words_of_the_right_one_tell_nothing() -> None:
    asked = questions()
    chance = sum(1 / len(one.continuations) for one in asked) / len(asked)
    used = [text for one in asked for text in one.continuations]
    rules: tuple[Callable[[str], int], ...] = (
        lambda text: len(text.encode()),
        lambda text: -len(text.encode()),
        lambda text: len(text.split()),
        lambda text: -len(text.split()),
        lambda text: -ord(text.strip()[0]),
        lambda text: ord(text.strip()[0]),
        used.count,
    )
    assert all(abs(share(asked, rule) - chance) < 0.06 for rule in rules[:-1])
    # Words that come up again as wrong ones are rather wrong.
    assert share(asked, rules[-1]) < chance + 0.06


def test_what_it_can_see() -> None:
    """With one question in ten answered otherwise than before: a difference of 3.5 points."""
    n = len(questions())
    changed = round(n / 10)
    before = np.asarray([1.0] * (changed // 2) + [0.0] * (changed - changed // 2) + [1.0] * (n - changed))
    after = np.concatenate([1 - before[:changed], before[changed:]])
    found = difference(after[None], before[None])
    assert 0.030 < (found.high - found.low) / 2 < 0.035
