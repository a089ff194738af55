"""What the demo says of BASIC's premise follows the interval."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from basic_lite.demo import place as demo_place
from basic_lite.demo.place import Place, Scores, scores_of
from basic_lite.demo.report import captions_text, premise_verdict
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Health, Interval, RefinementCurve
from basic_lite.training.look_lines import GateLook
from tests.support.runs import quiet


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Interval(0.004, -0.01, 0.018), "gain +0.004 [-0.010, +0.018] over 64 samples: can't tell. So these samples"),
        (Interval(0.02, 0.01, 0.03), "over 64 samples: holds. So the premise holds here."),
        (Interval(-0.02, -0.03, -0.01), "over 64 samples: fails. So the premise does not hold here."),
    ],
)
def test_the_verdict_follows_the_interval(gain: Interval, said: str) -> None:
    health = Health([78, 85], [78, 85], [0.01, 0.05], [3, 3], [0, 0], [0.5, 0.8], [1.0, 0.98])
    curve = RefinementCurve(["v", "target"], [0.1, 0.1 + gain.value], [0.05, 0.05], 64, 640, [gain], health)
    text = premise_verdict({"stage2": {"start": {}, "end": curve.to_dict()}}, [], SupervisionSection())
    assert said in text and "inert residual: v is 78 times" in text and "model.projector_start=matched" in text


def test_where_a_gate_judges_nothing_else_does() -> None:
    """Half of the curve's samples chose the target, so its gain is too good."""
    gain = Interval(0.03, 0.006, 0.06)
    curve = RefinementCurve(["v", "target"], [0.1, 0.13], [0.05, 0.05], 64, 640, [gain], None)
    looks = [GateLook(300, False, "can't tell", Interval(0.01, -0.02, 0.04), 32)]
    text = premise_verdict({"stage2": {"end": curve.to_dict()}}, looks, SupervisionSection())
    assert "holds" not in text.replace("whether the premise holds", "") and "over 64 samples. The gate decides" in text
    assert "+0.010 [-0.020, +0.040] over 32 samples, step 300. So these samples can't tell" in text


def test_the_log_of_an_older_version_can_be_read() -> None:
    old = {"places": ["v", "target"], "own": [0.1, 0.2], "control": [0.05, 0.05], "samples": 16, "patches": 576}
    text = premise_verdict({"stage2": {"end": {**old, "score": [0.05, 0.15]}}}, [], SupervisionSection())
    assert "v +0.050 → v̂ +0.150, gain +0.100 over 16 samples, without an interval: can't tell" in text


def test_scores_of_a_stage_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo scores stage 1 before there is a stage 2, and finds the scores again when there is one."""
    measured: list[str] = []

    def load(name: str) -> Any:
        return lambda: measured.append(name)

    monkeypatch.setattr(
        demo_place, "evaluate", lambda *_, **__: SimpleNamespace(accuracy={"all": 1.0}, counts={"all": 2})
    )
    world = SimpleNamespace(eval=tmp_path / "eval.json")
    world.eval.write_text("[]")
    place = Place(tmp_path, tmp_path / "models", world, 0)  # type: ignore[arg-type]

    def score(name: str) -> None:
        scores_of(tmp_path / "scores" / f"{name}.json", load(name), place, None, [], quiet())  # type: ignore[arg-type]

    def train(stage: str, text: str) -> None:
        (tmp_path / stage / "final").mkdir(parents=True, exist_ok=True)
        (tmp_path / stage / "final" / "manifest.json").write_text(text)

    for name in ("before", "stage1", "stage2", "shuffled"):
        if name in ("stage1", "stage2"):
            train(name, "one")
        score(name)
    first = list(measured)
    for name in first:
        score(name)
    assert measured == first == ["before", "stage1", "stage2", "shuffled"]
    train("stage1", "another")
    for name in first:
        score(name)
    assert measured[4:] == ["stage1", "stage2", "shuffled"]


def test_captions_are_told_with_what_the_number_means() -> None:
    columns = {"before training": Scores({}, {}), "after stage 1": Scores({}, {}, 0.734, 200, 56)}
    assert captions_text(columns) == (
        "caption F1: after stage 1 0.734. 1: descriptions name every object of a picture, and no other; places don't "
        "count. Right word for word: after stage 1 56 of 200."
    )
    assert "word for word" not in captions_text({"after stage 1": Scores({}, {}, 0.734)})  # of an earlier version
