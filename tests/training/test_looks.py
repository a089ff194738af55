"""When a run looks at BASIC's premise and tries its pull, and what that costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.training.gate_state import GateState
from basic_lite.training.looks import ASKED, COST, FEWEST_SAMPLES, PLANNED, Looks, plan_looks
from basic_lite.training.loop import Loop
from basic_lite.training.processes import ALONE


def test_looks_double_their_distance_and_leave_noise_out() -> None:
    looks = plan_looks(350, fresh=True, most_samples=64, passes=64_000, passes_a_look=1)
    assert looks == Looks((16, 32, 64, 128, 256), 64, fresh=True, passes=1, deciding_passes=0, run_passes=64_000)
    assert plan_looks(350, fresh=False, most_samples=64, passes=1e9, passes_a_look=1).steps[:3] == (0, 16, 32)
    # One alone: before the first step, or in the middle of them, when a fresh projector has learnt something.
    assert plan_looks(350, fresh=False, most_samples=64, passes=9_000, passes_a_look=1).steps == (0,)
    assert plan_looks(350, fresh=True, most_samples=64, passes=9_000, passes_a_look=1).steps == (64,)


@given(
    steps=st.integers(1, 100_000),
    fresh=st.booleans(),
    most=st.integers(32, 256),
    passes=st.floats(1, 1e7),
    cost=st.floats(0.5, 20),
)
def test_looks_cost_one_percent_or_are_one_small_look(
    steps: int, fresh: bool, most: int, passes: float, cost: float
) -> None:
    looks = plan_looks(steps, fresh=fresh, most_samples=most, passes=passes, passes_a_look=cost)
    assert looks.steps == tuple(sorted(set(looks.steps))) and looks.steps[0] >= 0 and looks.steps[-1] < max(steps, 1)
    spent = len(looks.steps) * looks.samples * cost
    assert spent <= PLANNED * passes or (len(looks.steps) == 1 and looks.samples == FEWEST_SAMPLES)


@given(
    run=st.floats(1e3, 1e8),
    decision=st.floats(1, 20),
    again=st.integers(16, 64),
    pulling=st.integers(16, 64),
    asked=st.integers(16, 128),
)
def test_trials_cost_their_share_or_are_one_small_one(
    run: float, decision: float, again: int, pulling: int, asked: int
) -> None:
    looks = Looks((0,), 32, False, 1, decision, run)
    trials = looks.trials(again=again, pulling=pulling, asked=asked)
    assert 8 <= trials.pulling <= pulling and 16 <= trials.asked <= asked
    assert trials.passes == 4 * trials.pulling + 2 * trials.asked
    assert trials.cost == trials.most_passes / run
    one = again * decision + trials.passes
    assert trials.left(0) and trials.left(trials.most_passes - 1.001 * one) and not trials.left(trials.most_passes)
    least = (trials.pulling, trials.asked) == (8, 16)
    assert trials.cost == pytest.approx(max(ASKED, one / run if least else 0))
    # As many samples as the share has room for, twice where that is possible.
    full = (trials.pulling, trials.asked) == (pulling, asked)
    assert full or least or one > 0.4 * ASKED * run


def test_a_long_run_tries_on_all_samples_and_within_one_percent() -> None:
    """LLaVA-1.5's stage 1 with a 7B model: 558k samples, whose search takes a fifth of a forward."""
    looks = plan_looks(2180, fresh=True, most_samples=64, passes=1.1e6, passes_a_look=4, passes_a_decision=1.4)
    trials = looks.trials(again=32, pulling=32, asked=64)
    assert (trials.pulling, trials.asked) == (32, 64) and trials.left(8 * (trials.again_passes + trials.passes))
    assert looks.cost(looks.samples) + trials.cost <= PLANNED + ASKED < COST


def test_two_trials_with_their_second_opinions_fit_the_share() -> None:
    """Of .4 % of 100,000: two second opinions of 32 × 1.5, and two trials of 19 × 4 + 38 × 2."""
    trials = Looks((0,), 32, False, 1, 1.5, 1e5).trials(again=32, pulling=32, asked=64)
    assert (trials.pulling, trials.asked) == (19, 38) and trials.left(200) and not trials.left(201)


def test_too_few_samples_are_all_of_them() -> None:
    trials = Looks((0,), 32, False, 1, 1.5, 1e4).trials(again=0, pulling=0, asked=0)
    assert (trials.pulling, trials.asked, trials.passes) == (0, 0, 0)


def test_a_look_of_the_loop() -> None:
    """It sees the curve of its own step alone, and makes none after the last. A shut gate leaves no value of BASIC."""
    seen: list[Any] = []
    gate = SimpleNamespace(
        due=lambda *_, **__: True, look=lambda *given: seen.append(given), state=GateState(open=True)
    )
    loop = cast(Any, SimpleNamespace(gate=gate, processes=ALONE, schedule=SimpleNamespace(steps=4)))
    loop.log, loop.progress = SimpleNamespace(has=lambda *_: False), SimpleNamespace(last_terms={"das": 1.0})
    for step, evaluated in ((1, False), (2, True), (3, True), (4, True)):
        loop._seen, loop._basic_terms = f"of step {step - (not evaluated)}", f"of step {step}"
        gate.state.open = step != 3
        Loop._look(loop, step, evaluated=evaluated)
        assert loop._seen is None and (loop._basic_terms is None) == (loop.progress.last_terms == {}) == (step == 3)
        loop.progress.last_terms = {"das": 1.0}
    assert seen == [(1, None), (2, "of step 2"), (3, "of step 3")]
