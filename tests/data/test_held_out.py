"""A part of the training data is kept for evaluation: whole pictures, the seed's draw, at most the share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.data.check import DataReport
from basic_lite.data.held_out import hold_out
from basic_lite.errors import UserError


def report_of(pictures: list[tuple[int, ...]]) -> DataReport:
    n = len(pictures)
    columns = [np.arange(n) * 10 + k for k in range(5)]
    return DataReport(10 * n, *columns, fingerprint="f", broken=[1], pictures=pictures)


def components(pictures: list[tuple[int, ...]]) -> list[set[int]]:
    """The pictures of records that hang together, by merging sets; an empty set for each record without one."""
    found: list[set[int]] = []
    for keys in map(set, pictures):
        touching = [one for one in found if one & keys]
        found = [one for one in found if not one & keys] + [keys.union(*touching)]
    return found


@given(
    pictures=st.lists(st.lists(st.integers(0, 12), max_size=2).map(tuple), min_size=2, max_size=40),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 3),
)
def test_a_picture_is_on_one_side(pictures: list[tuple[int, ...]], share: float, seed: int) -> None:
    report = report_of(pictures)
    try:
        train, held = hold_out(report, share, seed)
    except UserError:
        assert len(components(pictures)) == 1
        return
    assert len(components(pictures)) > 1
    assert len(train.kept) >= 1 and len(held.kept) >= 1
    assert sorted([*train.kept, *held.kept]) == report.kept.tolist()
    sides = [{key for keys in side.pictures or () for key in keys} for side in (train, held)]
    assert not sides[0] & sides[1]
    for side in (train, held):
        for place, name in enumerate(("kept", "lengths", "supervised", "n_images", "cut")):
            assert (getattr(side, name) == side.kept + place).all()
        assert [pictures[index // 10] for index in side.kept] == side.pictures
    again = hold_out(report, share, seed)
    assert (again[0].kept == train.kept).all() and (again[1].kept == held.kept).all()
    if len({key for keys in pictures for key in keys}) == sum(map(len, pictures)) and all(pictures):
        assert len(held.kept) == max(1, round(share * len(pictures)))  # nothing is shared: the share is met
    assert train.broken == [1] and held.broken == []  # what was dropped is told once


def test_other_seeds_draw_other_records() -> None:
    report = report_of([(n,) for n in range(100)])
    drawn = {tuple(hold_out(report, 0.1, seed)[1].kept) for seed in range(5)}
    assert len(drawn) == 5 and all(len(one) == 10 for one in drawn)


def test_one_picture_for_all_can_not_be_divided() -> None:
    with pytest.raises(UserError, match=r"data\.held_out: every record of data.train has the same picture"):
        hold_out(report_of([(1, 2), (2,), (3, 1)]), 0.5, 0)
