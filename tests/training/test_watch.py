"""Numbers that aren't finite stop a run before they change a weight, by name; a spike is told with its records."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from basic_lite.data.pixel_table import TABLE, looked_up
from basic_lite.errors import StoppedElsewhere, UserError
from basic_lite.model.parts import find_parts
from basic_lite.run import train
from basic_lite.training.processes import Processes
from basic_lite.training.step import MicroBatchLoss, StepCounts, Terms, TrainStep
from basic_lite.training.watch import ENOUGH, REMEMBERED, Watch, is_spike
from tests.support import supervision as kit
from tests.support.runs import assert_same_weights, log_of, quiet, tiny_recipe

BAD = 3  # the step into which a fault is put
Inject = Callable[[TrainStep, list[dict[str, torch.Tensor]]], None]


def spoil(tensor: torch.Tensor, value: float = math.nan) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


def weight(name: str) -> Inject:
    def inject(step: TrainStep, batches: Any) -> None:
        spoil(next(p for path, p in step.parts.model.named_parameters() if name in path))

    return inject


def state(name: str, value: float) -> Inject:
    def inject(step: TrainStep, batches: Any) -> None:
        assert step.optimizer is not None
        spoil(next(iter(step.optimizer.state.values()))[name], value)

    return inject


def pixel(step: TrainStep, batches: list[dict[str, torch.Tensor]]) -> None:
    batch = batches[1]
    # A byte is never NaN; what it stands for may be.
    batch["pixel_values"] = looked_up(batch["pixel_values"], batch.pop(TABLE))
    spoil(batch["pixel_values"])


def embedding(step: TrainStep, batches: list[dict[str, torch.Tensor]]) -> None:
    table = step.parts.model.get_input_embeddings().weight
    spoil(table[int(batches[0]["input_ids"][0, -1])])


def endless_gradient(step: TrainStep, batches: Any) -> None:
    parameter = next(p for p in step.trainable if p.ndim > 1)
    parameter.register_hook(lambda gradient: gradient.clone().fill_(math.inf))


def run_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, inject: Inject, changes: dict[str, Any] | None = None
) -> tuple[UserError, Path]:
    """A run into whose third step a fault is put: its error and its folder. Its log is written too late to see it."""
    gradients = TrainStep.gradients

    def spoiled(self: TrainStep, batches: Any, *args: Any, number: int = 0, **kwargs: Any) -> Any:
        if number == BAD:
            inject(self, batches)
        return gradients(self, batches, *args, number=number, **kwargs)

    monkeypatch.setattr(TrainStep, "gradients", spoiled)
    with pytest.raises(UserError) as caught:
        train(tiny_recipe(folder, {"training.log_every": 100, **(changes or {})}), console=quiet())
    monkeypatch.undo()
    return caught.value, folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a fault, as it was after the step before it."""
    folder = tmp_path_factory.mktemp("sound")
    train(tiny_recipe(folder, {"training.save_every": BAD - 1, "training.keep": 9}), console=quiet())
    return folder / "runs" / "tiny" / f"checkpoint-{BAD - 1}"


@pytest.mark.parametrize("term", ["lm", "das", "sds"])
def test_a_loss_is_named_with_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: Path, term: str
) -> None:
    loss, calls = TrainStep.loss, iter(range(99))

    def spoiled(self: TrainStep, batch: Any, *args: Any, number: int = 0, **kwargs: Any) -> MicroBatchLoss:
        found = loss(self, batch, *args, number=number, **kwargs)
        if number != BAD or next(calls) != 1:
            return found
        nan = torch.tensor(math.nan)
        if term == "lm":
            return dataclasses.replace(found, lm=found.lm * nan, loss=found.loss * nan)
        assert found.basic is not None
        part = getattr(found.basic, term) * nan
        return dataclasses.replace(
            found, loss=found.loss + part, basic=dataclasses.replace(found.basic, **{term: part})
        )

    monkeypatch.setattr(TrainStep, "loss", spoiled)
    error, run = run_with(tmp_path, monkeypatch, lambda step, batches: None)
    text = str(error)
    assert (
        f"step {BAD} has numbers that aren't finite: " in text
        and f"the {term.upper()} loss, the gradient of the projector" in text
    )
    # The step changed nothing, and what was before it is saved.
    assert_same_weights(run / f"checkpoint-{BAD - 1}", sound)
    assert f"model.start={run / f'checkpoint-{BAD - 1}'} name=NEW" in text
    if term == "lm":  # of the other losses the sums over the step are known
        assert "in micro-batch 2: " in text and text.count("data.json") >= 1


@pytest.mark.parametrize(
    ("inject", "named"),
    [
        (pixel, "the LM loss"),
        pytest.param(weight("vision_tower"), "the weight model.vision_tower.", marks=pytest.mark.soak),
        (weight("language_model.norm"), "the weight model.language_model."),
        (weight("linear_1.weight"), "linear_1.weight"),
        pytest.param(weight("lora_A"), ".lora_A.", marks=pytest.mark.soak),
        pytest.param(embedding, "embed_tokens.weight", marks=pytest.mark.soak),
        pytest.param(state("exp_avg", math.nan), "the optimizer's state", marks=pytest.mark.soak),
        (state("exp_avg_sq", math.inf), "the optimizer's state"),
    ],
    ids=["pixel", "tower", "norm", "projector", "LoRA", "embedding", "first moment", "second moment"],
)
def test_what_is_not_finite_is_named_in_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: Path, inject: Inject, named: str
) -> None:
    error, run = run_with(tmp_path, monkeypatch, inject, {"training.save_every": BAD - 1, "training.keep": 9})
    assert str(error).startswith(f"step {BAD} has numbers that aren't finite: ") and named in str(error)
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{BAD - 1}"]
    assert_same_weights(run / f"checkpoint-{BAD - 1}", sound)
    assert str(run / f"checkpoint-{BAD - 1}") in str(error)


def test_a_gradient_is_named_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    error, run = run_with(tmp_path, monkeypatch, endless_gradient)
    assert "the gradient of " in str(error) and "(gradients of " in str(error) and " loss," not in str(error)
    assert_same_weights(run / f"checkpoint-{BAD - 1}", sound)


@pytest.mark.long
def test_without_the_fault_it_goes_on_as_if_there_had_been_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"lora.dropout": 0.2, "training.max_steps": BAD}
    run_with(tmp_path, monkeypatch, endless_gradient, changes)
    went_on = train(tiny_recipe(tmp_path, changes), resume=True, console=quiet()).folder
    whole = train(tiny_recipe(tmp_path, changes | {"name": "whole"}), console=quiet()).folder
    assert_same_weights(went_on / "final", whole / "final")


def test_the_way_back_is_a_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = run_with(tmp_path, monkeypatch, pixel)
    start = str(run / f"checkpoint-{BAD - 1}")
    again = tiny_recipe(tmp_path, {"model.start": start, "name": "NEW", "training.max_steps": 1})
    assert train(again, console=quiet()).steps == 1


def test_a_spike_is_told_with_its_records_and_the_same_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = TrainStep.loss
    spiked = ENOUGH + 2

    def louder(self: TrainStep, batch: Any, *args: Any, number: int = 0, **kwargs: Any) -> MicroBatchLoss:
        found = loss(self, batch, *args, number=number, **kwargs)
        return dataclasses.replace(found, lm=found.lm * 50) if number == spiked else found

    monkeypatch.setattr(TrainStep, "loss", louder)
    changes = {"training.max_steps": spiked + 1, "training.save_every": spiked - 1, "training.keep": 9}
    changes |= {"supervision.enabled": False}
    console = quiet()
    train(tiny_recipe(tmp_path, changes), console=console)
    said = console.file.getvalue().replace("\n", " ")  # type: ignore[attr-defined]
    assert f"warning: the loss of step {spiked} is " in said and "in micro-batch " in said and "data.json" in said
    run = tmp_path / "runs" / "tiny"
    lines = [line for line in log_of(run) if "spike" in line]
    assert [line["step"] for line in lines] == [spiked]
    train(tiny_recipe(tmp_path, changes), resume=True, checkpoint=spiked - 1, console=quiet())
    assert [line for line in log_of(run) if "spike" in line] == lines


def test_a_spike_stands_out_from_what_is_usual() -> None:
    draw = random.Random(0)
    usual = [math.exp(draw.gauss(0.5, 0.2)) for _ in range(REMEMBERED)]
    # Of losses as they are, none is a spike; one of four times the median is.
    assert not any(is_spike(math.exp(draw.gauss(0.5, 0.2)), usual) for _ in range(2000))
    assert is_spike(4 * math.exp(0.5), usual) and not is_spike(0.1, usual)
    # Small batches vary by themselves, and there it takes more.
    wild = [math.exp(draw.gauss(0.5, 1.0)) for _ in range(REMEMBERED)]
    assert not is_spike(4 * math.exp(0.5), wild)
    assert not is_spike(99.0, usual[: ENOUGH - 1])
    assert is_spike(50.0, [0.0, *usual]) and not is_spike(0.0, usual)


@pytest.mark.parametrize("broken", ["weight", "state", "loss"])
def test_processes_decide_together_what_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: Path, broken: str
) -> None:
    """What one process alone finds stops all, and none begins a checkpoint that the others don't."""
    saved: list[int] = []

    def look(index: int) -> Exception:
        class Two(Processes):
            """One of two, and what the other would send."""

            count = property(lambda self: 2)  # type: ignore[assignment]
            index = property(lambda self: number)  # type: ignore[assignment]
            is_main = property(lambda self: number == 0)  # type: ignore[assignment]

            def gather(self, value: Any) -> list[Any]:
                other = value
                if isinstance(value, list):
                    other = ["projector.linear_1.weight"] if broken == "weight" else value
                else:
                    terms = value.terms | ({"lm": math.nan} if broken == "loss" else {})
                    state = {"the optimizer's state": math.nan} if broken == "state" else {}
                    bad = math.nan if broken == "weight" else 0.0
                    norms = value.norms | state | {"the gradient of LoRA": bad}
                    other = dataclasses.replace(value, terms=terms, norms=norms)
                return [value, other]

        number = index
        step = SimpleNamespace(parts=parts, optimizer=None, processes=Two())
        watch = Watch(
            cast(TrainStep, step), cast(Any, None), cast(Any, SimpleNamespace(micro_batches=lambda *_: [])),
            cast(Any, SimpleNamespace(path=tmp_path)), cast(Any, None), print,
            losses=[], save=lambda: saved.append(number),
        )  # fmt: skip
        terms = Terms()
        terms.add(MicroBatchLoss(torch.tensor(1.0), torch.tensor(1.0), None))
        batch = {"labels": torch.zeros(1, 3, dtype=torch.long)}
        with pytest.raises((UserError, StoppedElsewhere)) as caught:
            watch.look(3, [batch], terms, StepCounts(2, 0, 3))
        return caught.value

    parts = find_parts(kit.tiny_llava())
    first, second = look(0), look(1)
    assert saved == ([0, 1] if broken == "loss" else [])
    assert isinstance(second, StoppedElsewhere)
    named = {"weight": "the weight projector.linear_1", "state": "the optimizer's state", "loss": "the LM loss"}
    assert "step 3 has numbers that aren't finite: " in str(first) and named[broken] in str(first)
