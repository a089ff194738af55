"""The benches of the gate: what its looks cost, and how often it opens without a gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import gate_cost
from bench.gate_cost import AT_EVALUATION, BY_ITSELF, FIRST, STEP, Cost
from bench.gate_errors import LAYERS, PATCHES, made_look, made_run, opens, run_opens, with_target


@pytest.mark.long
def test_the_bench_of_the_cost_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BASIC_LITE_REAL_CACHE", str(tmp_path))
    assert gate_cost.main(["--tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4 and all(line.endswith("%") for line in lines[2:])


def test_shares_are_added_up() -> None:
    cost = Cost({FIRST: 2.0, BY_ITSELF: 1.5, AT_EVALUATION: 0.1, STEP: 1.0}, 350, (16, 250))
    assert cost.share(None) == (2, 3.5 / 350)
    assert cost.share(50) == (1 + 6, pytest.approx((2 + 0.6) / 350)), (
        "the planned look after step 250 is an evaluation's"
    )


@pytest.mark.long
def test_a_choice_that_decides_too_opens_more_often_than_halves_do() -> None:
    rng = np.random.default_rng(1)
    looks = [made_look(rng, 32, LAYERS) for _ in range(60)]
    both = sum(opens(with_target(look, slice(None), slice(None))) for look in looks)
    halves = sum(opens(with_target(look, slice(0, None, 2), slice(1, None, 2))) for look in looks)
    assert halves <= 5 < both
    looks[0][-1, range(32), range(32)] += 5 / PATCHES  # the last layer is better
    assert opens(looks[0][[0, -1]]) and opens(with_target(looks[0], slice(0, None, 2), slice(1, None, 2)))


def test_a_gain_of_those_that_decide_alone_is_not_shown_on_others() -> None:
    looks = made_run(np.random.default_rng(2), 48)
    assert run_opens(looks, 16) == (False, False)
    for samples, shown in ((range(32), (True, False)), (range(48), (True, True))):
        better = [look.copy() for look in looks]
        for look in better:
            look[-1, samples, samples] += 5 / PATCHES
        assert run_opens(better, 16) == shown
