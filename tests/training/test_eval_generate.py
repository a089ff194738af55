"""``training.eval_generate``: held-out questions that are answered at evaluations, with their score."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from basic_lite.data.prepare import prepare_data
from basic_lite.data.problems import BadImage, BadRecord
from basic_lite.errors import UserError
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import EvalMetric, Recipe
from basic_lite.run import train
from basic_lite.scoring.controls import asked_again
from basic_lite.scoring.looking import Controls
from basic_lite.scoring.metrics.named import METRICS
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.evaluate import evaluate
from basic_lite.tools.stages import look_ahead
from basic_lite.training import interview
from basic_lite.training.bundle import load_trained
from basic_lite.training.held_out_score import HeldOutScore, sample_of
from basic_lite.training.processes import ALONE, Processes
from tests.support.runs import LOUD, assert_same_terms, assert_same_weights, log_of, quiet, run, tiny_recipe, write_data

PLAIN = {"quantization.mode": "none", "training.eval_generate": 5}


def held_out(folder: Path, count: int = 7, **more: Any) -> dict[str, Any]:
    data = {"path": str(write_data(folder, count, text_only=2)), "image_dir": str(folder / "images")}
    return {"data.train": {**data, "limit": count}, "data.eval": data, **PLAIN, **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Recipe]:
    """A model that has learnt the colours, so its answers are right with the right picture alone."""
    folder = tmp_path_factory.mktemp("trained")
    changes = held_out(
        folder, **{"training.max_steps": 10, "training.learning_rate": 0.01, "training.eval_generate": 0}
    )
    path = run(folder, {**changes, "supervision.enabled": False, "training.scheduler": "constant"})
    loaded, bundle = load_trained(path, torch.device("cpu"))
    return loaded, bundle.recipe.model_copy(
        update={"training": bundle.recipe.training.model_copy(update={"eval_generate": 5})}
    )


def asking(
    trained: tuple[Loaded, Recipe], processes: Processes = ALONE, say: Callable[[str], object] = lambda text: None
) -> HeldOutScore:
    loaded, recipe = trained
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    assert data.eval is not None and data.eval_report is not None
    longest = int(data.report.lengths.max())
    return HeldOutScore(recipe, loaded, data.eval, data.eval_report, processes, say, nullcontext, longest=longest)


def texts(found: Any) -> list[tuple[str | None, ...]]:
    return [(one.prediction, one.other_picture, one.no_picture) for one in found.predictions]


def test_the_sample_is_fixed_and_has_pictures(trained: tuple[Loaded, Recipe]) -> None:
    loaded, recipe = trained
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    assert data.eval is not None and data.eval_report is not None
    samples = [[one.record.number for one in sample_of(data.eval, data.eval_report, n)] for n in (3, 5, 5, 100)]
    assert samples[1] == samples[2] == sorted(samples[1]) and set(samples[0]) < set(samples[1])
    assert samples[3] == list(range(1, 8)), "all that have a picture, and none of the two without"


def test_answers_and_scores_are_those_of_eval(trained: tuple[Loaded, Recipe]) -> None:
    """The same questions through ``evaluate``: the same words, scores and verdict."""
    loaded, recipe = trained
    one = asking(trained)
    found = one.ask(1, micro_batch=2)
    assert found is not None
    chosen = [question.record for question in one.questions]
    wanted = evaluate(loaded, recipe, chosen, again=asked_again(one.questions, 500, one.chat))
    assert texts(found) == texts(wanted) and found.scores == [p.score for p in wanted.predictions]
    assert found.controls == wanted.controls and found.controls is not None and found.controls.other is not None
    assert found.estimate.share > found.controls.other.share, "the pictures tell"
    # What the log keeps is enough to say it again.
    logged = json.loads(json.dumps(found.record()))
    assert Controls.from_json(logged["generated"]["controls"]) == found.controls
    assert logged["eval_score"] == wanted.score and logged["generated"]["scores"] == found.scores


class Second(Processes):
    """One of two processes: the first leaves what it has in a list, where the second finds it."""

    def __init__(self, index: int, others: list[Any]) -> None:
        super().__init__()
        self._index, self._others = index, others

    @property
    def count(self) -> int:
        return 2

    @property
    def index(self) -> int:
        return self._index

    def gather(self, value: Any) -> list[Any]:
        self._others.append(value)
        return list(self._others) if self._index else [("the other process isn't there yet", None, {})]


def test_neither_micro_batch_nor_processes_change_the_answers(
    trained: tuple[Loaded, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = interview.answer

    def noted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["batch_size"])
        return real(*args, **kwargs)

    monkeypatch.setattr(interview, "answer", noted)
    one = asking(trained)
    whole = one.ask(1, micro_batch=64)
    assert sizes == [16, 16, 16]
    assert whole is not None and texts(one.ask(1, micro_batch=1)) == texts(whole)
    assert 1 <= sizes[-1] < 16
    others: list[Any] = []
    asking(trained, Second(0, others)).ask(1, micro_batch=2)
    both = asking(trained, Second(1, others)).ask(1, micro_batch=2)
    shares = [set(found) for _, _, found in others]
    assert shares[0] and shares[1] and not shares[0] & shares[1], "each question once"
    assert texts(both) == texts(whole)


def test_too_little_memory_lowers_the_batch_and_is_said(
    trained: tuple[Loaded, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    one, real, room = asking(trained, say=said.append), interview.answer, 2
    whole = one.ask(1, micro_batch=64)

    def small(*args: Any, batch_size: int, **kwargs: Any) -> Any:
        if batch_size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(interview, "answer", small)
    again = one.ask(2, micro_batch=64)
    assert whole is not None and texts(again) == texts(whole)
    assert said == [f"out of memory in step 2's answers, {n} at once: it goes on with {n // 2}" for n in (16, 8, 4)]
    assert one.lowered == 2 == one.at_once(64), "the next look begins with it"
    room = 0
    assert one.ask(3, micro_batch=64) is None
    assert said[-1] == (
        "warning: step 3: no score of held-out questions: not enough memory to answer a single one; "
        "training.eval_generate=0 leaves them out"
    )


def test_a_picture_that_broke_costs_the_look_alone(
    trained: tuple[Loaded, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise BadImage("3.png is gone")

    said: list[str] = []
    one = asking(trained, say=said.append)
    monkeypatch.setattr(interview, "answer", broken)
    assert one.ask(4, micro_batch=1) is None
    assert said == ["warning: step 4: no score of held-out questions: 3.png is gone"]

    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(interview, "answer", fault)
    with pytest.raises(RuntimeError, match="a fault"):
        one.ask(4, micro_batch=1)


def test_answers_that_the_metric_cant_read_are_refused(trained: tuple[Loaded, Recipe]) -> None:
    loaded, recipe = trained
    training = recipe.training.model_copy(update={"eval_metric": "yes_no"})
    with pytest.raises(
        BadRecord, match=r"yes_no can't read its right answer.*choose another with training.eval_metric"
    ):
        asking((loaded, recipe.model_copy(update={"training": training})))


def test_the_dry_run_and_the_look_ahead_refuse_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And training before it loads weights."""
    recipe = tiny_recipe(tmp_path, held_out(tmp_path, **{"training.eval_metric": "yes_no"}))
    monkeypatch.setattr("basic_lite.run.load_for_training", lambda *_, **__: pytest.fail("weights are loaded"))
    for start in (dry_run, train, lambda one, console: look_ahead([one], None, console=console)):
        with pytest.raises(UserError, match=r"yes_no can't read its right answer.*training\.eval_metric"):
            start(recipe, console=quiet())


def test_every_metric_of_the_key_needs_the_records_answer_alone() -> None:
    assert {name for name, one in METRICS.items() if one.least_answers == 1} == set(get_args(EvalMetric))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that generates at two evaluations, and what it said."""
    folder = tmp_path_factory.mktemp("asked")
    console = quiet()
    changes = held_out(folder, **LOUD, **{"lora.dropout": 0.3, "training.eval_every": 2, "name": "asked"})
    path = train(tiny_recipe(folder, changes), console=console).folder
    run(folder, {**changes, "name": "without", "training.eval_generate": 0})
    return path, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.long
def test_no_number_of_the_training_changes(asked: tuple[Path, list[str]]) -> None:
    """Generation in the middle of training with dropout: every loss and weight is bit for bit the same."""
    path, _ = asked
    without = path.with_name("without")
    assert_same_terms(without, path, rel=0)
    assert_same_weights(without / "final", path / "final")
    losses = [[line["eval_loss"] for line in log_of(one) if "eval_loss" in line] for one in (without, path)]
    assert losses[0] == losses[1] and not (without / "best").exists()


def test_the_terminal_has_a_line_of_each_look(asked: tuple[Path, list[str]]) -> None:
    path, lines = asked
    looks = [line for line in log_of(path) if "eval_score" in line]
    assert [line["step"] for line in looks] == [2, 4] and all("eval_loss" in line for line in looks)
    for look in looks:
        assert look["eval_score_other_picture"] is not None and look["eval_score_no_picture"] is not None
        (told,) = (line for line in lines if line.startswith(f"step {look['step']}: exact match"))
        share = r"\d+ % \[.*\]"
        ways = f"{share} of 5; {share} with another picture; {share} without one"
        assert re.fullmatch(rf"step \d: exact match {ways} \([^;]* s(; so 0:.. for the 1 evaluation left)?\)", told)
        assert ("evaluation left" in told) == (look["step"] == 2)
    assert any("each evaluation asks 5 held-out questions, each also with another picture" in line for line in lines)
    assert any(line.startswith("best step by exact match: 2, with 0 %") for line in lines), "of equals the earlier"
    times = [line["time"] for line in log_of(path) if "whole_s" in line.get("time", {})]
    assert times[-1]["answering_s"] > 0


@pytest.fixture(autouse=True)
def _no_leftover_state() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
