"""How long a run says it will still take, beside a made clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from basic_lite.data.check import DataReport
from basic_lite.data.prepare import Prepared
from basic_lite.data.sampler import GroupedSampler
from basic_lite.recipe.schema import Recipe
from basic_lite.training.batches import Schedule
from basic_lite.training.processes import ALONE
from basic_lite.training.time_left import ANSWERED, FORWARD, TimeLeft, time_left_of
from tests.support.runs import tiny_recipe

STEPS, LOADING_S, TOKEN_S = 100, 600.0, 1e-3
ANY = cast(Any, object())  # what is only asked whether it is there


def report(lengths: np.ndarray) -> DataReport:
    none = np.zeros_like(lengths)
    return DataReport(len(lengths), np.arange(len(lengths)), lengths, none, none, none)


def made(folder: Path, *, evaluates: bool, basic: bool) -> tuple[TimeLeft, list[float], list[float]]:
    """What a run knows of its work, and by a made clock when each step ends and when the next one begins.

    A forward takes a third of what a token takes with its backward, a curve's sample half of it. The first step also
    loads libraries. Each step's time is up to a fifth more or less than its tokens say.
    """
    draw = np.random.default_rng(3)
    lengths, held_out = draw.integers(40, 2000, size=8 * STEPS), draw.integers(40, 2000, size=200)
    changes: dict[str, Any] = {"max_steps": STEPS, "global_batch": 8, "eval_every": 20 if evaluates else None}
    recipe: Recipe = tiny_recipe(
        folder, {"supervision.refinement_batches": 4} | {f"training.{name}": value for name, value in changes.items()}
    )
    sampler = GroupedSampler(lengths, np.ones_like(lengths, dtype=bool), 8, "length")
    schedule = Schedule(sampler, recipe)
    data = Prepared(
        ANY, report(lengths), sampler, ANY, ANY if evaluates else None, report(held_out) if evaluates else None
    )
    curve_s = 16 * lengths.mean() * TOKEN_S / 2 if basic else 0.0
    evaluation_s = held_out.sum() * TOKEN_S / 3 + curve_s
    now, ends, begins = 0.0, [], []
    for step in range(1, STEPS + 1):
        padded = sum(len(part) * lengths[part].max() for part in schedule.micro_batches(step - 1, ALONE))
        now += padded * TOKEN_S * draw.uniform(0.8, 1.2) + (LOADING_S if step == 1 else 0.0)
        ends.append(now)
        if evaluates:
            now += evaluation_s if step % 20 == 0 else 0.0
        elif step == STEPS:
            now += curve_s
        begins.append(now)
    return time_left_of(recipe, data, schedule, ANY if basic else None), ends, begins


@pytest.mark.parametrize("basic", [False, True], ids=["plain", "basic"])
@pytest.mark.parametrize("evaluates", [False, True], ids=["steps alone", "evaluations"])
def test_the_time_left_is_right_within_a_tenth(tmp_path: Path, evaluates: bool, basic: bool) -> None:
    left, ends, begins = made(tmp_path, evaluates=evaluates, basic=basic)
    said = [left.after(step, ends[step - 1]) for step in range(1, STEPS + 1)]
    assert said[0] is None, "the first step loads libraries"
    for step in (25, 50, 75, STEPS):  # after the last there is still its evaluation, or the curve
        assert said[step - 1] == pytest.approx(begins[-1] - ends[step - 1], rel=0.1)


def test_a_run_that_goes_on_measures_its_own_steps(tmp_path: Path) -> None:
    left, ends, begins = made(tmp_path, evaluates=True, basic=True)
    asleep = 1e6  # between the two programs
    assert left.after(41, ends[40] + asleep) is None
    assert left.after(60, ends[59] + asleep) == pytest.approx(begins[-1] - ends[59], rel=0.1)


def test_answers_are_guessed_until_they_are_measured_and_no_part_of_the_steps() -> None:
    # Four steps of 1 unit, 2 s each; held-out questions are answered after steps 2 and 4, in 30 s and 50 s.
    left = TimeLeft([1.0] * 4, [1.0] * 4, looks=[2, 4])
    left.expect((30, 1))  # tokens of the questions, of the answers
    assert left.after(1, 0.0) is None
    assert left.after(2, 2.0) == 2 * 2.0 + 2 * 2.0 * (30 * FORWARD + ANSWERED), "two looks, by their tokens"
    left.answered(30.0)
    assert left.after(3, 34.0) == 2.0 + 30.0
    left.answered(50.0)
    assert left.after(4, 86.0) == 40.0, "the mean of both, for the look after this step"


def test_work_that_differs_between_steps_is_weighed() -> None:
    # Four steps of 1, 2, 3 and 4; after the second comes 10 more.
    left = TimeLeft([1.0, 12.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert left.after(1, 100.0) is None
    assert left.after(2, 104.0) == 2 * (10 + 3 + 4), "2 s for each unit of work"
    assert left.after(3, 130.0) == 2 * 4
    assert left.after(4, 138.0) == 0.0
