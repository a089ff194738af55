"""What a run says of its refinement curves."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from basic_lite.supervision import Health, Interval, RefinementCurve
from basic_lite.training import refinement_log
from basic_lite.training.loop import Loop
from basic_lite.training.refinement_log import RefinementLog
from tests.support import supervision as kit

GIANT = Health([2, 300], [2, 280], [0.01, 0.98], [3, 507], [0.0, 0.1], [0.5, 0.8], [1.0, 0.03])


def curve(gain: Interval, health: Health | None) -> RefinementCurve:
    own = [0.1, 0.1, 0.1 + gain.value]
    return RefinementCurve(["v", "h1", "target"], own, [0.05] * 3, 64, 640, [gain, gain], health)


def test_a_failing_premise_is_warned_of_and_an_illness_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    log = RefinementLog(kit.build(kit.tiny_llava()), [{}], None, said.append, nullcontext, fresh=True)
    fails, unknown = Interval(-0.02, -0.03, -0.01), Interval(-0.02, -0.03, 0.01)

    def measured(step: int, gain: Interval, health: Health | None) -> list[str]:
        """How each line begins, after the curve's."""
        said.clear()
        seen = SimpleNamespace(curve=lambda: curve(gain, health))
        monkeypatch.setattr(refinement_log, "see_patches", lambda *_, **__: seen)
        found = log.measure(step)
        assert found is not None and found[0]["refinement"]["gains"][-1] == gain and found[1] is seen
        assert said[0].startswith(f"step {step}: BASIC's premise") and gain.text in said[0]
        return [line[:26] for line in said[1:]]

    warning, giant = "warning: step 2: BASIC's premise", "note: step 2: giant target"
    assert measured(0, fails, None) == [], "a fresh projector's v is noise"
    assert measured(2, fails, GIANT) == [warning[:26], giant]
    assert measured(4, unknown, GIANT) == measured(6, Interval(0.02, 0.01, 0.03), GIANT) == []
    log = RefinementLog(kit.build(kit.tiny_llava()), [{}], None, said.append, nullcontext, fresh=True)
    assert measured(0, fails, GIANT)[0].startswith("note: step 0: giant target"), "the LLM makes giants of noise too"


def test_where_there_was_no_memory_no_earlier_curve_takes_its_place() -> None:
    """The gate would decide on what the model was at an earlier step."""
    loop = cast(Any, SimpleNamespace(progress=SimpleNamespace(step=1), gate=None, _seen="of step 0"))
    loop.log = SimpleNamespace(has=lambda *_: False, write=pytest.fail)
    loop.refinement = SimpleNamespace(measure=lambda *_, **__: None)
    Loop._measure_premise(loop)
    assert loop._seen is None
