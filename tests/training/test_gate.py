"""BASIC is on only where its premise holds; what is left to measurement is measured once, and survives a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.resampling import Interval
from basic_lite.run import train
from basic_lite.supervision import calibration
from basic_lite.supervision.premise import RefinementCurve, see_patches
from basic_lite.supervision.target import TargetPlan
from basic_lite.training.bundle_files import Bundle
from basic_lite.training.files import sha256
from basic_lite.training.gate import Gate
from basic_lite.training.gate_state import GateState
from basic_lite.training.looks import Looks, Trials
from basic_lite.training.places import MANIFEST
from basic_lite.training.processes import ALONE
from tests.support import supervision as kit
from tests.support.runs import assert_same_weights, log_of, quiet, tiny_recipe, write_data
from tests.support.words import word_tokenizer

MEASURED: dict[str, Any] = {"supervision.preset": "measured", "supervision.refinement_batches": 8}
ALL_ON: dict[str, Any] = MEASURED | {"supervision.gate": False, "training.max_steps": 6}


def curve(low: float, high: float, samples: int = 64) -> RefinementCurve:
    gain = Interval((low + high) / 2, low, high)
    return RefinementCurve(["v", "target"], [0.2, 0.2], [0.1, 0.1], samples, 64, [gain], None)


LOWER = Interval(-0.02, -0.03, -0.01)


class Lowering:
    """A pull that lowers the loss; how it is tried is another test's."""

    def tried(self) -> Interval:
        return LOWER


def a_gate(said: list[str], batches: Sequence[dict[str, Tensor]] = (), **settings: Any) -> Gate:
    """A gate of a tiny model whose second layer writes each sample's own words over its picture."""
    supervision = kit.build(own_words_after_layer_two(kit.tiny_llava()), **settings)
    return Gate(
        supervision,
        Looks((0,), 16, False, 1, 1, 10_000),
        choosing=batches[::3],
        testing=batches[1::3],
        again=batches[2::3],
        pull=Lowering(),  # type: ignore[arg-type]
        trials=Trials(16, 32, 20, 128, 1480, 10_000),
        parted=True,
        deciding=16,
        cost=0.0016,
        limited=False,
        tokenizer=word_tokenizer(),
        say=said.append,
        autocast=nullcontext,
        processes=ALONE,
    )


def own_words_after_layer_two(model: Any) -> Any:
    seen: dict[str, Tensor] = {}

    def keep(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["ids"] = kwargs["input_ids"]

    def write(_module: Any, _args: Any, hidden: Tensor) -> Tensor:
        ids = seen["ids"]
        words = model.get_input_embeddings()(ids[:, -1])[:, None]  # the last word of each sample
        return torch.where((ids == kit.IMAGE)[..., None], words, hidden)

    model.model.register_forward_pre_hook(keep, with_kwargs=True)
    model.model.language_model.layers[1].register_forward_hook(write)
    return model


def picture_and_word(*words: int) -> dict[str, Tensor]:
    ids = torch.tensor([[1, *([kit.IMAGE] * kit.PATCHES), 3, word] for word in words])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(len(words), 3, 8, 8, generator=torch.Generator().manual_seed(words[0])),
    }


WORDS = [9, *range(12, 28)]  # of three letters or more


def test_the_gate_opens_and_shuts_on_the_interval_alone() -> None:
    said: list[str] = []
    gate = a_gate(said, gate=True)
    assert not gate.state.open
    for low, high, samples, open_, words in (
        (-0.1, 0.1, 64, False, "isn't shown here"),
        (0.01, 0.1, 64, True, "is on: its premise holds"),
        (0.02, 0.1, 64, True, "stays on"),
        (0.02, 0.1, 15, False, "off again"),  # too few samples to show anything
        (-0.1, -0.01, 64, False, "does not hold here"),
    ):
        record = gate.decide(3, curve(low, high, samples), lambda: curve(0.03, 0.1), lambda: LOWER)
        assert gate.state.open == record["open"] == open_
        assert words in said[-1] and f"[{low:+.3f}, {high:+.3f}]" in said[-1] and f"{samples} samples" in said[-1]
        assert ("gain_again" in record) == ("is on" in said[-1]), "asked again where it would open"


@pytest.mark.parametrize("high", [0.0, 0.001])
def test_a_pull_that_is_not_seen_to_lower_the_loss_opens_nothing(high: float) -> None:
    said: list[str] = []
    gate, asked = a_gate(said, gate=True), []

    def tried() -> Interval:
        asked.append(1)
        return Interval(-0.01, -0.02, high)

    for step, count, words in (
        (7, 1, f"isn't seen to: -0.01 nats a token [-0.02, {high:+.2g}]"),
        (13, 1, "wasn't seen to at step 7; it isn't tried again before step 14"),
        (14, 2, "isn't seen to: "),
        (
            28,
            2,
            "wasn't seen to at step 14; it isn't tried again in this run: trials may take 0.4% of a run, and that ",
        ),
    ):
        gate.trials = replace(gate.trials, most_passes=300 if step == 28 else 1480)
        record = gate.decide(step, curve(0.01, 0.1), lambda: curve(0.01, 0.1), tried)
        assert (gate.state.open, record["verdict"], len(asked)) == (False, "holds", count)
        assert f"; but its pull has to lower the loss, and {words}" in said[-1]
    last = "its premise held, and its pull wasn't seen to lower the loss (step 14)"
    gate.trials = replace(gate.trials, most_passes=1480)
    assert gate.summary(19) == f"BASIC was on in 0 of 19 steps: {last}"
    assert not gate.decide(28, curve(0.01, 0.1), lambda: curve(0.01, 0.1), lambda: None)["open"]
    assert (
        "; but its pull has to lower the loss, and couldn't be tried; it isn't tried again before step 56. " in said[-1]
        and gate.state.refused == 28
    )
    assert gate.state.asked == 3 * (20 + 128), "a trial without memory counts"
    assert gate.decide(56, curve(0.01, 0.1), lambda: curve(0.01, 0.1), lambda: LOWER)["open"]


@pytest.mark.parametrize(("low", "high"), [(-0.02, 0.1), (-0.1, -0.02)])
def test_what_other_samples_do_not_show_opens_nothing(low: float, high: float) -> None:
    said: list[str] = []
    gate = a_gate(said, gate=True)
    record = gate.decide(7, curve(0.01, 0.1), lambda: curve(low, high, 20), pytest.fail)
    assert not gate.state.open and record["verdict"] == "can't tell" and record["gain_again"] == curve(low, high).gain
    assert said[0].startswith("step 7: BASIC is off: its premise isn't shown here") and "+0.010, +0.100" in said[0]
    others = said[0].partition("; and on others ")[2]
    assert f"[{low:+.3f}, {high:+.3f}] over 20 samples: " in others


def test_it_goes_on_as_its_checkpoint_says() -> None:
    """Each thing that it knows: BASIC's way, when it was refused, what asking has cost."""
    batches = [picture_and_word(word) for word in (5, 6, 7)]
    gate = a_gate([], batches, gate=True, layers="measured", refinement_batches=8)
    plan = asdict(gate.supervision.target_plan)
    for opened in (True, False):
        state = GateState(opened, plan, chosen=True, steps_on=7, verdict="fails", refused=40, asked=12.5)
        assert all(getattr(state, one.name) != one.default for one in fields(state) if one.name != "open")
        gate.restore(asdict(state), Bundle(Path("checkpoint-9"), {}, None))  # type: ignore[arg-type]
        assert gate.state == state
        assert bool(gate.kept) is not opened  # while BASIC is on, its target stays


def test_it_looks_where_something_can_be_decided_and_says_what_came() -> None:
    gate = a_gate([], gate=True)
    assert gate.due(0, evaluated=False) and gate.due(3, evaluated=True) and not gate.due(3, evaluated=False)
    shown = "its premise was never shown on the 16 samples that decide and on as many others"
    never = f"BASIC was on in 0 of 9 steps: {shown}; "
    assert gate.summary(9) == f"{never}more pictures with a text would narrow the doubt"
    gate.limited = True
    asks = ": 0 samples choose its target, 16 others decide. Where they show it, 16 more are asked, and BASIC's pull "
    asks += "has to lower the loss; then BASIC goes on"
    assert gate.outlook()[0].endswith(f"{asks}; a longer run would look at more")
    assert gate.summary(9) == f"{never}a longer run would look at more"
    gate.cost, gate.limited = 0.0587, False
    assert gate.outlook()[0].endswith(f"{asks}; that costs up to 5.9% of this run, since it is short")
    gate.cost = 1.436
    more = "the looks cost more than so short a run itself: supervision.enabled=false leaves them out"
    assert gate.outlook()[0].endswith(f"{asks}; {more}")
    gate.decide(3, curve(-0.1, -0.01), pytest.fail, pytest.fail)
    assert gate.summary(9) == "BASIC was on in 0 of 9 steps: its premise doesn't hold here"
    gate.deciding = 15
    assert not gate.due(0, evaluated=False) and not gate.due(3, evaluated=True)
    assert gate.summary(9) == "BASIC was on in 0 of 9 steps" and not gate.outlook()


def test_what_is_asked_costs_no_more_than_its_share() -> None:
    """Second opinions count, and trials of a gate that opens and shuts; a pull that lowered the loss isn't refused."""
    said: list[str] = []
    gate, asked = a_gate(said, gate=True), []
    gate.trials = Trials(16, 32, 20, 128, 520, 10_000)

    def look(step: int, holds: bool, confirms: bool, change: Interval = LOWER) -> bool:
        def again() -> RefinementCurve:
            asked.append(20)
            return curve(0.01, 0.1) if confirms else curve(-0.1, 0.1)

        def tried() -> Interval:
            asked.append(128)
            return change

        shown = curve(0.01, 0.1) if holds else curve(-0.1, 0.1)
        return bool(gate.decide(step, shown, again, tried)["open"])

    assert not look(16, True, True, Interval(0.02, 0.01, 0.03)) and gate.state.refused == 16
    assert look(32, True, True) and gate.state.refused is None and not look(48, False, False)
    assert not look(50, True, False) and look(64, True, True) and not look(80, False, False)
    gate.restore(json.loads(json.dumps(asdict(gate.state))))
    assert sum(asked) == gate.state.asked == 464 and not look(96, True, True) and sum(asked) == 464
    spent = (
        "its pull has to lower the loss, and isn't tried now; it isn't tried again in this run: trials may take 0.4% of"
    )
    assert spent in said[-1]


def test_without_a_gate_basic_is_on_from_the_start() -> None:
    assert a_gate([]).state.open


def test_a_measured_curve_opens_the_gate_and_chooses_the_layer() -> None:
    said: list[str] = []
    batches = [picture_and_word(*WORDS) for _ in range(3)]
    gate = a_gate(said, batches, gate=True, layers="measured", layer_weights="measured")
    record = gate.look(0)
    assert record is not None and record["gate"]["open"] and record["gate"]["samples"] == len(WORDS)
    assert gate.supervision.layers == 2 and record["gate"]["plan"]["layer_weights"][1] > 0.9
    assert said[0].startswith("step 0: BASIC's target: layers 1..2 of 4, weights 0.0")
    assert "step 0: BASIC is on: its premise holds" in said[1]


@pytest.mark.parametrize("target_norm", ["layer", "none", "final"])
def test_a_look_at_an_evaluation_takes_its_curve_and_finds_the_same(target_norm: str) -> None:
    """Against a look of its own on the same samples: the same target, the same gain, and not one forward."""
    batches = [picture_and_word(*WORDS), picture_and_word(*reversed(WORDS)), picture_and_word(*WORDS[3:], *WORDS[:3])]
    measured = {"layers": "measured", "layer_weights": "measured", "target_norm": target_norm}
    gate = a_gate([], batches, gate=True, **measured)
    assert (gate.kept == range(0)) == (target_norm == "layer"), "massive dimensions are not known yet"
    if target_norm == "layer":
        gate.supervision.use(TargetPlan((0.0, 0.0, 1.0), ((), (3,), (), (5, 8))))
    forwards: list[Any] = []
    gate.supervision.parts.model.model.register_forward_hook(lambda *_: forwards.append(1))
    before = gate.supervision.target_plan
    seen = see_patches(gate.supervision, in_turns(*batches[:2]), gate.tokenizer, kept=gate.kept)
    count = len(forwards)
    found = gate.look(2, seen)
    assert found is not None and len(forwards) == count + 1 == 2 * len(WORDS) + 1, "the second opinion alone"
    gate.supervision.use(before)
    gate.state.open = False
    expected = gate.look(2)
    assert expected is not None and len(forwards) == count + 4
    for name in ("v", "target", "gain", "gain_again"):
        assert found["gate"][name] == pytest.approx(expected["gate"][name], abs=1e-9), name
    assert found["gate"]["plan"] == expected["gate"]["plan"] and expected["gate"]["gain"].low > 0
    assert gate.kept == range(0), "an open gate keeps its target, and needs no layers"
    again = gate.look(3, see_patches(gate.supervision, in_turns(*batches[:2]), gate.tokenizer, kept=gate.kept))
    assert again is not None and again["gate"]["gain"] == pytest.approx(expected["gate"]["gain"], abs=1e-9)


def in_turns(*halves: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Samples as an evaluation's curve has them: those that choose and those that decide take turns."""
    rows = range(len(halves[0]["input_ids"]))
    return [{key: value[i : i + 1] for key, value in half.items()} for i in rows for half in halves]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"layer_weights": [1.0] * 99, "massive": None}, "a target of 99 layers for an LLM that has"),
        ({"layer_weights": [1.0], "massive": [[10**6]]}, "without dimension 1000000"),
        ({"layer_weights": [0.0], "massive": None}, "one is above 0"),
        ({"layer_weights": [1.0, 1.0], "massive": [[0]]}, "1 lists of massive dimensions for 2 layers"),
        (None, "doesn't say whether BASIC was on"),
    ],
)
def test_a_checkpoint_with_a_target_of_another_model(tmp_path: Path, plan: Any, told: str) -> None:
    checkpoint = Bundle(tmp_path / "checkpoint-3", {}, tiny_recipe(tmp_path))
    state = None if plan is None else {"open": True, "plan": plan, "chosen": True, "steps_on": 1, "verdict": "holds"}
    with pytest.raises(UserError, match=rf"checkpoint-3 .*{told}.* take another checkpoint"):
        a_gate([], gate=True).restore(state, checkpoint)


def test_out_of_memory_in_a_look_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    gate = a_gate(said, [picture_and_word(*WORDS) for _ in range(3)], layers="measured", layer_weights="measured")
    before = gate.supervision.target_plan

    def no_room(*_args: Any, **_how: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(calibration, "refinement_curve", no_room)
    assert gate.look(0) is None
    assert gate.supervision.target_plan == before and gate.state.plan is None and gate.state.open
    assert "not enough memory for 17 samples at once; BASIC stays on" in said[0]


def test_no_memory_for_the_second_opinion_leaves_a_gate_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    batches = [picture_and_word(*WORDS) for _ in range(3)]
    gate = a_gate(said, batches, gate=True, layers=2, layer_weights="quadratic")
    monkeypatch.setattr(Gate, "_tested", lambda *_args, **_how: curve(0.01, 0.1))

    def no_room(*_args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Gate, "_gain_on", no_room)
    assert gate.look(0) is None
    assert not gate.state.open and gate.state.verdict == "can't tell" and "BASIC stays off" in said[-1]


def test_an_open_gate_that_can_look_no_more_shuts(tmp_path: Path) -> None:
    """A version that asked no other samples needed fewer."""
    said: list[str] = []
    gate = a_gate(said, gate=True)
    state = {"open": True, "plan": None, "chosen": True, "steps_on": 4, "verdict": "holds"}
    gate.restore(dict(state), Bundle(tmp_path / "checkpoint-3", {}, tiny_recipe(tmp_path)))
    assert gate.state.open and not said
    gate.deciding = 13
    gate.restore(dict(state), Bundle(tmp_path / "checkpoint-3", {}, tiny_recipe(tmp_path)))
    assert not gate.state.open and "BASIC is off from here: too few samples" in said[0]


def test_a_shut_gate_trains_as_llava_does(tmp_path: Path) -> None:
    write_data(tmp_path, 48)
    shut = train(tiny_recipe(tmp_path, MEASURED | {"name": "shut"}), console=(console := quiet()))
    off = train(tiny_recipe(tmp_path, {"name": "off", "supervision.enabled": False}), console=quiet())
    assert_same_weights(shut.bundle, off.bundle)
    looks = [line["gate"] for line in log_of(shut.folder) if "gate" in line]
    assert [look["open"] for look in looks] == [False] and len(looks[0]["gain"]) == 3 and looks[0]["samples"] >= 16
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("goes on once its premise is shown to hold") == 1 and "nothing is lost" in text
    assert "BASIC was on in 0 of 4 steps" in text
    assert not any("das" in line for line in log_of(shut.folder))


@pytest.mark.long
def test_one_verdict_a_step(tmp_path: Path) -> None:
    """The evaluation's curve is of all samples, and the gate decides on half of them: they have other numbers."""
    write_data(tmp_path, 48)
    recipe = tiny_recipe(tmp_path, MEASURED | {"data.held_out": 0.2, "training.eval_every": 2})
    train(recipe, console=(console := quiet()))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    both = [line for line in lines if line.startswith("step 2: BASIC") and "v̂ " in line]
    assert len(both) == 2, both
    assert "over 32 samples (best" in both[0] and not any(f": {one}" in both[0] for one in ("holds", "can't", "fails"))
    assert "over 16 samples that its target wasn't chosen on: " in both[1]
    # Nor has the last step's curve: some of its samples chose the target.
    (last,) = [line for line in lines if line.startswith("step 4: BASIC") and "v̂ " in line]
    assert "over 32 samples (best" in last


def test_what_was_chosen_survives_a_resume_bit_for_bit(tmp_path: Path) -> None:
    changes = ALL_ON | {"training.save_every": 3}
    whole = train(tiny_recipe(tmp_path, changes | {"name": "whole"}), console=quiet())
    recipe, run = tiny_recipe(tmp_path, changes | {"name": "parts"}), tmp_path / "runs" / "parts"
    shutil.copytree(whole.folder, run)
    chosen = [line["gate"]["plan"] for line in log_of(run) if "gate" in line]
    assert len(chosen) == 2 and sum(chosen[-1]["layer_weights"]) == pytest.approx(1)
    state = json.loads((run / "checkpoint-3" / "training.json").read_text())
    assert state["progress"]["gate"]["plan"] == chosen[-1]
    for later in ("checkpoint-6", "final"):
        shutil.rmtree(run / later)
    train(recipe, resume=True, console=quiet())
    assert_same_weights(whole.bundle, run / "final")


def test_an_open_gate_has_basic_in_its_steps(tmp_path: Path) -> None:
    write_data(tmp_path, 48)
    recipe = tiny_recipe(tmp_path, MEASURED | {"training.save_every": 2, "training.max_steps": 4})
    train(recipe, console=quiet())
    run = tmp_path / "runs" / "tiny"
    path = run / "checkpoint-2" / "training.json"
    state = json.loads(path.read_text())
    state["progress"]["gate"]["open"] = True
    del state["progress"]["gate"]["refused"]  # earlier versions tried no pull
    path.write_text(json.dumps(state))
    manifest = json.loads((path.parent / MANIFEST).read_text())
    manifest["files"][path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    (path.parent / MANIFEST).write_text(json.dumps(manifest))
    for later in ("checkpoint-4", "final"):
        shutil.rmtree(run / later)
    train(recipe, resume=True, console=(console := quiet()))
    assert {line["step"] for line in log_of(run) if "das" in line} == {3, 4}
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "BASIC is on, as it was when the run stopped" in text and "BASIC is off until" not in text
    assert "BASIC was on in 2 of 4 steps" in text
