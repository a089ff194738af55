"""The best step: which one is kept, that it is never lost, and what is said of it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from basic_lite.errors import UserError
from basic_lite.intervals import difference, difference_of_chosen
from basic_lite.run import train
from basic_lite.scoring.metrics.named import METRICS
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.clean import clean
from basic_lite.tools.runs import row_of
from basic_lite.training import evaluation
from basic_lite.training.best_text import best_of, flattered_by
from basic_lite.training.bundle_files import find_bundle, open_bundle
from basic_lite.training.files import write_json
from basic_lite.training.held_out_score import HeldOutScore, Scored
from basic_lite.training.log_lines import read_log
from basic_lite.training.places import BEST, best_record
from tests.support.runs import assert_same_weights, log_of, quiet, run, tiny_recipe, write_data

# Of four questions at each step; step 2 and step 3 have as many right.
RIGHT = {1: [1, 0, 0, 0], 2: [1, 1, 1, 0], 3: [0, 1, 1, 1], 4: [1, 1, 0, 0]}
SAVING = {"training.save_every": 1, "training.keep": 9, "training.eval_every": 1, "supervision.enabled": False}


def scored(scores: Sequence[float]) -> Scored:
    made = [Prediction(i + 1, "", "", [], "q", "a", "", bool(one), score=float(one)) for i, one in enumerate(scores)]
    return Scored(METRICS["exact"], made)


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are made up: these tests are about what follows from their scores."""
    monkeypatch.setattr(HeldOutScore, "ask", lambda self, step, micro_batch: scored(RIGHT[step]))


def changes(folder: Path, **more: Any) -> dict[str, Any]:
    data = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    return {**SAVING, "data.eval": data, "training.eval_generate": 4, "lora.dropout": 0.2, **more}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; never changed."""
    folder = tmp_path_factory.mktemp("best")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutScore, "ask", lambda self, step, micro_batch: scored(RIGHT[step]))
        run(folder, changes(folder))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "runs" / "tiny", tmp_path / "runs" / "tiny"))


def go_on(made: Path, place: Path, **more: Any) -> Path:
    return run(made, {**changes(made), "output": str(place.parent), **more}, resume=True)


def unfinish(place: Path, after: int) -> None:
    """What a run leaves that was killed after its checkpoint of a step."""
    shutil.rmtree(place / "final")
    for step in range(after + 1, 5):
        shutil.rmtree(place / f"checkpoint-{step}")


def test_the_best_step_is_kept_whole_and_of_equals_the_earlier(place: Path) -> None:
    bundle = open_bundle(place / BEST)
    assert bundle.step == 2 and best_record(place / BEST) == {
        "step": 2,
        "by": "exact",
        "value": 0.75,
        "score": bundle.manifest["best"]["score"],
    }
    assert_same_weights(place / BEST, place / "checkpoint-2")
    assert_same_weights(place / "final", place / "checkpoint-4")
    assert not (place / BEST / "optimizer.safetensors").exists()
    # A folder of a run still means its last step; the best one is named.
    assert find_bundle(place) == place / "final" and find_bundle(place / BEST) == place / BEST


def test_what_is_said_of_it(place: Path) -> None:
    best = best_of(place, read_log(place).rare)
    assert best is not None
    # Question by question, and of step 2 as the best of four.
    gain = difference_of_chosen(np.array(list(RIGHT.values()), dtype=float), 1, 3)
    told = list(best.lines())
    assert told[0].startswith(
        "best step by exact match: 2, with 75 % [30, 95] of 4 held-out questions; its weights are"
    )
    assert told[1] == (
        f"the last step, 4, has 50 % [15, 85]: the best has +25 points [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}] "
        "more, of too few questions to tell"
    )
    often = "it is the best of 4 looks at the same data, so it seems better than it is, here by about "
    assert told[2].startswith(often) and "points; ask other questions" in told[2]
    assert told[3:] == ["not all of that data is new to it: 12 of 12 pictures trained on"]
    assert "best at step 2: exact match 75.0% [30%, 95%]" in row_of(place).score


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.soak) for step in (2, 3))])
def test_a_resumed_run_goes_on_comparing(made: Path, place: Path, step: int) -> None:
    """Also one whose best step came after its last checkpoint."""
    unfinish(place, step)
    go_on(made, place)
    assert best_record(place / BEST) == best_record(made / "runs" / "tiny" / BEST)
    assert_same_weights(place / BEST, made / "runs" / "tiny" / BEST)
    scores = [
        [line["eval_score"] for line in log_of(one) if "eval_score" in line] for one in (place, made / "runs/tiny")
    ]
    assert scores[0] == scores[1] == [0.25, 0.75, 0.75, 0.5]


@pytest.mark.long
def test_going_back_sets_a_later_best_step_aside(made: Path, place: Path) -> None:
    """The run ends at step 3 this time. Step 1 is the best of those before, and has a checkpoint."""
    said = quiet()
    again = {**changes(made), "output": str(place.parent)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutScore, "ask", ends_here)
        with pytest.raises(UserError, match="ends here"):
            train(tiny_recipe(made, again), console=said, resume=True, checkpoint=1)
    text = " ".join(said.file.getvalue().split())  # type: ignore[attr-defined]
    assert "set-aside-best" in text and "the best step up to here, 1, is in" in text
    assert open_bundle(place / "set-aside-best").step == 2 and open_bundle(place / BEST).step == 1
    assert best_record(place / BEST) == {"step": 1, "by": "exact", "value": 0.25}
    assert_same_weights(place / BEST, place / "checkpoint-1")
    assert not (place / BEST / "optimizer.safetensors").exists()
    go_on(made, place)
    assert_same_weights(place / BEST, made / "runs" / "tiny" / BEST)
    clean([place], yes=True, console=quiet())
    assert not (place / "set-aside-best").exists() and (place / BEST).is_dir()


def ends_here(self: Any, step: int, micro_batch: int) -> Any:
    raise UserError("it ends here")


def test_a_best_step_without_a_checkpoint_is_not_compared_with(made: Path, place: Path) -> None:
    """Back to step 3 where step 2 was the best and step 4 is called better: step 2 has no checkpoint."""
    manifest = json.loads((place / BEST / "manifest.json").read_text())
    write_json(place / BEST / "manifest.json", manifest | {"step": 4, "best": {"by": "exact", "value": 0.9}})
    shutil.rmtree(place / "checkpoint-2")
    said = quiet()
    train(tiny_recipe(made, {**changes(made), "output": str(place.parent)}), console=said, resume=True, checkpoint=3)
    text = " ".join(said.file.getvalue().split())  # type: ignore[attr-defined]
    assert "the best step up to here was 2; a later one had replaced it" in text
    assert best_record(place / BEST)["step"] == 4 and best_record(place / BEST)["value"] == 0.5  # type: ignore[index]


def test_a_step_that_the_run_does_not_have_is_not_its_best(place: Path) -> None:
    """What earlier versions left after going back."""
    lines = [line for line in log_of(place) if line["step"] <= 1]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best_of(place, read_log(place).rare) is None and "best" not in row_of(place).score


def test_a_kill_between_two_names_loses_nothing(made: Path, place: Path) -> None:
    """The moment in which the old one has left its name and the new one hasn't taken it."""
    unfinish(place, 3)
    shutil.copytree(place / BEST, place / "best.part")
    os.rename(place / BEST, place / "best.old")
    said = quiet()
    clean([place], yes=True, console=said)
    assert (place / "best.old").is_dir() and not (place / "best.part").exists()
    go_on(made, place)
    assert open_bundle(place / BEST).step == 2 and not (place / "best.old").exists()


@pytest.mark.soak
def test_a_full_disk_keeps_the_earlier_one_and_the_look_is_made_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step isn't in the log as evaluated, so the run that continues looks again, and keeps it."""
    real = evaluation.BestStep._save

    def full(self: Any, record: dict[str, Any]) -> None:
        if record["value"] == 0.75:
            raise UserError("the disk is full")
        real(self, record)

    monkeypatch.setattr(evaluation.BestStep, "_save", full)
    own = {"output": str(tmp_path)}
    with pytest.raises(UserError, match="disk is full"):
        run(made, changes(made, **own))
    place = tmp_path / "tiny"
    assert open_bundle(place / BEST).step == 1 and (place / "checkpoint-2").is_dir()
    monkeypatch.setattr(evaluation.BestStep, "_save", real)
    run(made, changes(made, **own), resume=True)
    assert_same_weights(place / BEST, made / "runs" / "tiny" / BEST)


@pytest.mark.soak
def test_the_best_alone_is_something_saved(made: Path, place: Path) -> None:
    unfinish(place, 0)
    assert find_bundle(place) == place / BEST
    with pytest.raises(UserError, match="already holds a run that has saved best of this recipe; continue it with"):
        run(made, {**changes(made), "output": str(place.parent)})
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        go_on(made, place, **{"training.learning_rate": 0.5})
    clean([place], yes=True, console=quiet())
    go_on(made, place)
    assert_same_weights(place / BEST, made / "runs" / "tiny" / BEST)


def test_by_loss_the_lowest_that_is_a_number(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([math.nan, 2.0, math.inf, 1.5])
    monkeypatch.setattr(evaluation.Evaluation, "_loss", lambda *_: next(losses))
    more = {"output": str(tmp_path), "training.metric_for_best_model": "loss", "training.eval_generate": 0}
    place = run(made, changes(made, **more))
    assert best_record(place / BEST) == {"step": 4, "by": "loss", "value": 1.5}
    best = best_of(place, read_log(place).rare)
    assert best is not None and next(best.lines()).startswith("best step by held-out loss: the last, 4, with 1.500;")


def test_clean_takes_it_only_if_asked(place: Path) -> None:
    clean([place], yes=True, console=quiet())
    assert (place / BEST).is_dir() and not (place / "checkpoint-2").exists()
    clean([place], yes=True, best=True, console=quiet())
    assert not (place / BEST).exists() and (place / "final").is_dir()


@pytest.mark.soak
def test_files_of_people_are_moved_before_a_better_one_comes(made: Path, place: Path) -> None:
    unfinish(place, 1)
    manifest = json.loads((place / BEST / "manifest.json").read_text())
    manifest["best"]["value"] = 0.1
    write_json(place / BEST / "manifest.json", manifest)
    (place / BEST / "notes.txt").write_text("mine")
    go_on(made, place)
    assert (place / "kept-1" / BEST / "notes.txt").read_text() == "mine"
    assert best_record(place / BEST)["value"] == 0.75  # type: ignore[index]


def test_a_folder_of_another_kind_is_refused(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    place.mkdir()
    (place / "parts.json").write_text('[{"part": "projector"}]')
    (place / BEST).mkdir()
    with pytest.raises(UserError, match=r"isn't this run's.*training\.metric_for_best_model=off"):
        run(made, changes(made, output=str(tmp_path)))


def test_how_much_the_best_of_several_looks_is_flattered() -> None:
    """Five looks of equal truth: beside what the best of five really seems to gain, over many worlds."""
    draw = np.random.default_rng(5)
    worlds = draw.random((60, 5, 60)) < 0.6
    said = [flattered_by(looks.astype(float)) for looks in worlds]
    real = [looks.mean(axis=1).max() - 0.6 for looks in worlds]
    assert np.mean(said) / np.mean(real) == pytest.approx(2 / 3, abs=0.1)
    assert flattered_by([[1.0, 0.0, 1.0]]) == pytest.approx(0, abs=0.02), "one look was not chosen"


def test_the_best_of_equal_looks_is_seldom_called_better_than_the_last() -> None:
    """Ten looks of equal truth, half of whose answers differ: one interval knows of the choice, the plain one not."""
    draw = np.random.default_rng(7)
    false, plain, worlds = 0, 0, 100
    for _ in range(worlds):
        looks = (draw.random((10, 60)) < 0.5).astype(float)
        best = int(looks.mean(axis=1).argmax())
        false += difference_of_chosen(looks, best, 9).low > 0
        plain += difference(looks[[best]], looks[[9]]).low > 0
    assert false <= 5 and plain >= 8
    better = np.repeat([[0.0] * 60 + [1.0] * 40], 3, axis=0)
    better[1, :30] = 1
    assert difference_of_chosen(better, 1, 2).low > 0.1, "one that is really better is seen"
