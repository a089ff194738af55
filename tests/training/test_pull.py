"""BASIC's pull is tried as one computes it by hand, leaves nothing behind, and opens a gate where it lowers a loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.intervals import ratio_interval
from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.resampling import Interval
from basic_lite.run import train
from basic_lite.supervision import Supervision
from basic_lite.supervision.premise import RefinementCurve
from basic_lite.training.look_lines import GateLook, looks_in
from basic_lite.training.pull import MOVED, Pull
from basic_lite.training.step import TrainStep
from tests.support import supervision as kit
from tests.support.marks import rest_long
from tests.support.runs import assert_same_weights, log_of, quiet, tiny_recipe, write_data

CPU = torch.device("cpu")


def a_pull(**settings: Any) -> Pull:
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    supervision = kit.build(model, **settings)
    pulling = [kit.tiny_batch("image", seed=seed) for seed in (1, 2)]
    asked = [kit.tiny_batch("image", seed=seed) for seed in range(3, 11)]  # 2 samples each
    return Pull(TrainStep(supervision.parts, supervision, device=CPU), pulling, asked, lambda: 2)


def by_hand(pull: Pull) -> list[float]:
    """The same from BASIC's losses alone, without a guard, and transformers' own loss of one sample at a time."""
    model, supervision = pull.step.supervision.parts.model, pull.step.supervision
    weights, total = list(supervision.parts.projector.parameters()), 0.0
    samples = sum(len(batch["input_ids"]) for batch in pull.pulling)
    for batch in pull.pulling:
        _, basic = kit.run(supervision, batch, samples_with_image=samples)
        total = total + supervision.settings.lambda_das * basic.das + supervision.settings.lambda_sds * basic.sds
    gradient = torch.autograd.grad(total, weights)

    @torch.no_grad()
    def losses() -> Tensor:
        found = []
        for batch in pull.asked:
            pictures = iter(batch["pixel_values"])
            for row, ids in enumerate(batch["input_ids"]):
                kept = batch["attention_mask"][row].bool()
                own = torch.stack([next(pictures) for _ in range(int((ids == kit.IMAGE).sum()) // kit.PATCHES)])
                one = {"input_ids": ids[kept][None], "labels": batch["labels"][row][kept][None], "pixel_values": own}
                found.append(super(type(model), model).forward(**one).loss)
        return torch.stack(found).double()

    model.eval()
    before, long = losses(), torch.cat([one.flatten() for one in gradient]).norm()
    norm = torch.cat([weight.detach().flatten() for weight in weights]).norm()
    with torch.no_grad():
        for weight, one in zip(weights, gradient, strict=True):
            weight -= MOVED * norm / long * one
    return (losses() - before).tolist()


@pytest.mark.parametrize("settings", [{}, {"target_norm": "layer", "sinks": "drop", "lambda_sds": 1.0}])
def test_it_is_what_is_computed_by_hand(settings: dict[str, Any]) -> None:
    pull = a_pull(**settings)
    found = pull.tried()
    expected = torch.tensor(by_hand(pull), dtype=torch.float64).numpy()
    assert len(expected) == 16 and found.low < found.value < found.high
    assert found == pytest.approx(ratio_interval(expected, expected * 0 + 1), rel=1e-3)


def test_what_surrounds_it_changes_nothing() -> None:
    """Neither the size of micro-batches, nor the autocast of a look, nor where in its warm-up BASIC would be."""
    pull = a_pull()
    found = pull.tried()
    assert replace(pull, micro_batch=lambda: 1).tried() == pytest.approx(found, rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert pull.tried() == found
    assert a_pull(warmup_ratio=1.0).tried() == found


def test_the_guard_takes_part() -> None:
    free, guarded = a_pull(lambda_das=50.0), a_pull(lambda_das=50.0, guard=0.1)
    assert free.tried() != pytest.approx(guarded.tried(), rel=1e-3)


def test_a_basic_that_is_the_language_models_own_loss_lowers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pull = a_pull()
    real = TrainStep.loss

    def doubled(self: TrainStep, batch: Any, counts: Any, lambdas: Any) -> Any:
        found = real(self, batch, counts, (0.0, 0.0))
        found.loss.mul_(1 + self.supervision.full_lambdas[0] * bool(any(lambdas)))
        return found

    monkeypatch.setattr(TrainStep, "loss", doubled)
    assert replace(pull, asked=pull.pulling).tried().high < 0


class Dropping(torch.nn.Module):
    """A projector behind a dropout."""

    def __init__(self, projector: torch.nn.Module) -> None:
        super().__init__()
        self.projector, self.dropout = projector, torch.nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.projector(self.dropout(features))


def test_no_basic_pulls_nothing_whatever_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    pull = a_pull()
    parts = pull.step.supervision.parts
    parts.model.model.multi_modal_projector = Dropping(parts.projector)
    before = torch.get_rng_state()
    assert pull.tried() != (0, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(Supervision, "full_lambdas", (0.0, 0.0))
    assert pull.tried() == (0, 0, 0)


def test_it_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pull = a_pull()
    parts = pull.step.supervision.parts

    def state() -> list[Any]:
        found = [torch.get_rng_state(), *parts.model.state_dict().values()]
        return [one.clone() for one in found]

    pull.step.train_mode()
    modes, before = [module.training for module in parts.model.modules()], state()
    pull.tried()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert [module.training for module in parts.model.modules()] == modes
    assert all(weight.grad is None for weight in parts.model.parameters())

    losses = Pull._losses
    monkeypatch.setattr(
        Pull, "_losses", lambda self: losses(self) if calls.pop() else (_ for _ in ()).throw(MemoryError)
    )
    calls = [False, True]  # the second time there is no memory
    with pytest.raises(MemoryError):
        pull.tried()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


RAISES, LOWERS = Interval(0.0083, 0.0043, 0.0124), Interval(-0.0027, -0.0068, -0.00012)


@pytest.mark.parametrize("change", rest_long((RAISES,), (LOWERS,)))
def test_a_gate_goes_on_where_its_pull_lowers_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Interval
) -> None:
    """In stage 2 with LoRA and its dropout: a trial that opens nothing changes no bit of the run."""
    write_data(tmp_path, 48)
    monkeypatch.setattr(RefinementCurve, "verdict", "holds")
    tried = Pull.tried
    monkeypatch.setattr(Pull, "tried", lambda self: change if tried(self).low < 1 else None)  # it is made all the same
    measured = {"supervision.preset": "measured", "supervision.refinement_batches": 8, "lora.dropout": 0.1}
    one = train(tiny_recipe(tmp_path, measured | {"name": "one"}), console=(console := quiet()))
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    (look,) = looks_in(log_of(one.folder))
    assert look.change == change and look.verdict == "holds" and look.open is (change is LOWERS)
    if look.open:
        assert "and its pull lowers the loss: -0.0027 nats a token [-0.0068, -0.00012]" in text
        assert "BASIC was on in 2 of 4 steps" in text
        return
    off = {"name": "off", "supervision.enabled": False, "lora.dropout": 0.1}
    assert_same_weights(one.bundle, train(tiny_recipe(tmp_path, off), console=quiet()).bundle)
    assert (
        "BASIC is off: its premise holds, v " in text
        and "; but its pull has to lower the loss, and isn't seen to: " in text
    )
    assert "so nothing is lost; supervision.gate=false trains with BASIC all the same" in text
    assert "0 of 4 steps: its premise held, and its pull wasn't seen to lower the loss (step 2)" in text


def test_a_look_says_what_the_trial_came_to() -> None:
    look = GateLook(300, False, "holds", Interval(0.02, 0.01, 0.03), 32, Interval(0.03, 0.01, 0.05), RAISES)
    assert look.why_shut == "its premise holds here, but its pull wasn't seen to lower the loss"
    assert look.text.endswith(
        "over others; its pull changes the loss by +0.0083 nats a token [+0.0043, +0.012], step 300"
    )
