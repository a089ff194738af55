"""When a run looks at BASIC's premise, and what that costs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from basic_lite.training.looks import FEWEST_SAMPLES, PLANNED, Looks, plan_looks


def test_looks_double_their_distance_and_leave_noise_out() -> None:
    looks = plan_looks(350, fresh=True, most_samples=64, passes=42_000, passes_a_look=1)
    assert looks == Looks((16, 32, 64, 128, 256), 64, fresh=True, passes=1, run_passes=42_000)
    assert plan_looks(350, fresh=False, most_samples=64, passes=1e9, passes_a_look=1).steps[:3] == (0, 16, 32)


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
