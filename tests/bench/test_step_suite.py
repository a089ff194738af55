"""The synthetic model is the loaded one but for its values; its step is measured, timed, reported; all on the CPU."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from basic_lite.model.audit import Part, audit, check_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Shape
from basic_lite.tools.measure import LongestStep
from basic_lite.training.assembly import load_for_training, make_step
from basic_lite.training.breakdown import CAPTURE, MASS, SDS, Breakdown, Clock
from bench import measure, step_suite
from bench.step_suite import Side, StepResult
from bench.synthetic import synthetic_model
from bench.timed_step import timed_by
from tests.support.models import write_llm, write_vision
from tests.support.runs import whole_recipe
from tests.support.shapes import on_shapes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("step_suite")


def synthetic(recipe: Recipe) -> Loaded:
    torch.manual_seed(0)
    return synthetic_model(recipe, load_frontend(recipe.model), CPU)


def tensors_of(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What a tensor is, apart from its values."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (type(tensor).__name__, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            found[name] += (state.shape, state.dtype, state.blocksize, state.nested, state.absmax.dtype)
    return found


def without_bytes(part: Part) -> dict[str, object]:
    return {key: value for key, value in vars(part).items() if key != "bytes"}


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {}),
        ("qwen2", {"quantization.double": False, "model.dtype": "bfloat16", "lora.dtype": "bfloat16"}),
        ("llama", {"quantization.mode": "none", "lora.enabled": False, "stage": 1}),
    ],
    ids=["NF4, LoRA", "bf16, biases", "unquantised, stage 1"],
)
def test_synthetic_model_is_the_loaded_one_but_for_its_values(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    recipe = whole_recipe(tmp_path, changes, kind=kind)
    real = load_for_training(recipe, CPU, load_frontend(recipe.model), lambda text: None)
    made = synthetic(recipe)
    assert tensors_of(made.model) == tensors_of(real.model)
    modules = [{name: type(m).__name__ for name, m in loaded.model.named_modules()} for loaded in (made, real)]
    assert modules[0] == modules[1]
    tables = [audit(loaded.parts) for loaded in (made, real)]
    check_parts(tables[0], recipe, torch.bfloat16 if "model.dtype" in changes else torch.float32)
    assert [without_bytes(part) for part in tables[0]] == [without_bytes(part) for part in tables[1]]
    for ours, theirs in zip(*tables, strict=True):
        # bitsandbytes writes some of a layer's statistics as text, whose length depends on the values.
        assert ours.bytes == pytest.approx(theirs.bytes, abs=8 * 4 * 7)
    assert made.vocabulary_ids.equal(real.vocabulary_ids)
    assert made.model.config.text_config.vocab_size == real.model.config.text_config.vocab_size


def test_weights_are_drawn_and_nothing_overflows(folder: Path) -> None:
    made = synthetic(whole_recipe(folder))
    linear = made.parts.layers[0].mlp.down_proj.base_layer
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    assert weight.std() == pytest.approx(0.02, rel=0.1) and abs(weight.mean()) < 2e-3
    assert made.parts.embeddings.weight.std() == pytest.approx(0.02, rel=0.1)
    assert made.parts.norm.weight.eq(1).all()
    assert made.parts.language_model.rotary_emb.inv_freq[0] == 1  # not what happened to be in memory
    assert all(p.isfinite().all() for p in made.model.parameters())


def test_never_more_than_one_layer_is_unquantised(tmp_path: Path) -> None:
    """In full precision this model's linear layers are 9 MiB, the largest of them 0.5."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    write_llm(tmp_path / "llm", **sizes)
    write_vision(tmp_path / "vision")
    recipe = whole_recipe(tmp_path)
    frontend = load_frontend(recipe.model)
    synthetic_model(recipe, frontend, CPU)  # what libraries keep from their first use
    made: list[Loaded] = []
    peak = measure.peak_bytes(lambda: made.append(synthetic_model(recipe, frontend, CPU)), CPU)
    table = audit(made[0].parts)
    final = sum(part.bytes for part in table)
    linears = next(part for part in table if part.part == "LLM linears")
    largest = 4 * 256 * 512
    print(f"{final / 2**20:.2f} MiB, {peak / 2**20:.2f} at the peak")
    assert peak <= final + 2 * largest  # the layer, and bitsandbytes' scratch for it
    assert final + 2 * largest < 4 * linears.parameters / 2  # a bound that a copy of half of them would break


class LateClock(Clock):
    """A moment can be read only after a wait, as on a GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.unread: list[list[Any]] = []

    def mark(self) -> Any:
        self.unread.append([time.process_time(), False])
        return self.unread[-1]

    def wait(self) -> None:
        while self.unread:
            self.unread.pop()[1] = True

    def ms(self, start: Any, end: Any) -> float:
        assert start[1] and end[1], "read before it was there"
        return 1e3 * float(end[0] - start[0])


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[StepResult, int, dict[str, Any]]:
    """The suite on a tiny shape: its result, exit code and file."""
    changes = {"training.global_batch": 8, "training.micro_batch": 2, "lora.dropout": 0.05, "data.max_length": 128}
    recipe = whole_recipe(folder, {**changes, "supervision.target_norm": "layer"})
    result = step_suite.predicted(recipe, CPU, None, "this CPU")
    work = partial(step_suite.run, recipe, CPU, result, time.monotonic())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_suite, "Clock", LateClock)
        code = step_suite.report(result, folder / "step.json", measure.describe(CPU), work)
    return result, code, json.loads((folder / "step.json").read_text())


@pytest.mark.long
def test_suite_measures_a_step(measured: tuple[StepResult, int, dict[str, Any]]) -> None:
    result, code, written = measured
    assert code == 0 and not result.problems
    assert result.shape == Shape(2, 128, 1, 4)
    for side in (result.on, result.off):
        assert side.measured_bytes is not None
        assert side.predicted_bytes == pytest.approx(side.measured_bytes, rel=0.05)
        assert [len(laps) for laps in side.laps_ms] == [4]  # two of four micro-batches; the time was up after one turn
    assert result.on.measured_bytes > result.off.measured_bytes  # type: ignore[operator]
    assert result.kernels.startswith("reference")
    assert written["versions"]["torch"] == torch.__version__ and written["on_over_off"] == result.on_over_off
    assert written["on"]["tokens_per_s"] == result.times(result.on)["tokens_per_s"]


@pytest.mark.long
def test_operations_have_their_share_of_a_step(measured: tuple[StepResult, int, dict[str, Any]]) -> None:
    result, _, written = measured
    shares = written["shares"]
    assert shares.keys() == {"direction_loss", "row_scaling", "vocab_kl", "attention_mass", "all"}
    assert all(share > 0 for share in shares.values())
    assert shares["all"] == pytest.approx(sum(shares[name] for name in shares if name != "all")) and shares["all"] < 1
    assert result.off.operations_ms == [{}]


@pytest.mark.parametrize("weights", ["attention", "uniform"])
def test_timing_changes_nothing_and_off_is_off(folder: Path, weights: str) -> None:
    def gradient(basic_in_recipe: bool, *, basic: bool, timed: bool) -> torch.Tensor:
        changes = {"training.max_grad_norm": 0.0, "supervision.enabled": basic_in_recipe}
        recipe = whole_recipe(folder, {**changes, "supervision.token_weights": weights, "data.max_length": 32})
        times = Breakdown(Clock(CPU))
        times.start()
        make = timed_by(times) if timed else make_step
        step = LongestStep(recipe, synthetic(recipe), Shape.of(recipe), CPU, lambda text: None, make)
        step.batches[0]["pixel_values"] = torch.ones_like(step.batches[0]["pixel_values"])
        found: list[torch.Tensor] = []
        weight = step.loaded.parts.projector.linear_2.weight
        handle = weight.register_post_accumulate_grad_hook(lambda p: found.append(p.grad.clone()))
        step(basic=basic)
        handle.remove()
        assert weight.grad is None and len(found) == len(step.batches) == 2
        assert ({CAPTURE, MASS, SDS} <= times.take().keys()) == (basic and timed)
        return found[-1]

    on = gradient(True, basic=True, timed=False)
    off = gradient(False, basic=False, timed=False)
    assert gradient(True, basic=True, timed=True).equal(on)
    assert gradient(True, basic=False, timed=True).equal(off)
    assert not on.equal(off)


def test_whole_step_is_made_of_its_parts() -> None:
    side = Side(0)
    side.laps_ms = [[8.0, 30.0, 20.0, 5.0], [8.0, 32.0, 24.0, 7.0]]
    side.operations_ms = [{}, {"vocab_kl": 7.1}]
    result = StepResult("x", "y", 8.0, Shape(1, 2048, 1, 16), side, Side(0), micro_batch_tokens=2048)
    assert side.steps_ms == [63.0, 71.0]
    assert result.times(side)["step_quantiles_ms"] == pytest.approx((64.6, 67.0, 69.4))
    # 16 micro-batches: a forward before each of them, the first with its measures, 15 like the second, one optimizer.
    assert side.whole_step_ms(16) == pytest.approx(4 * 16 + 31 + 15 * 22 + 6)
    assert side.shares()["vocab_kl"] == pytest.approx(0.05) and side.shares()["attention_mass"] == 0
    assert result.times(side)["tokens_per_s"] == pytest.approx(1e3 * 2048 * 16 / 431)
    assert result.on_over_off is None and set(result.times(result.off).values()) == {None}


def test_steps_that_took_turns_give_a_ratio_with_an_interval() -> None:
    def side(*times: float) -> Side:
        return Side(0, laps_ms=[[0.4 * ms, 0.6 * ms] for ms in times])

    def ratio(on: Side, off: Side) -> Any:
        return StepResult("x", "y", 8.0, Shape(1, 2048, 1, 1), on, off).measured_on_over_off

    slow, fast = [100.0 + i for i in range(20)], [80.0 + i for i in range(20)]
    found = ratio(side(*slow), side(*fast))
    assert found.value == pytest.approx(sum(slow) / sum(fast)) and found.low < found.value < found.high
    assert found.low > 1.2 and found.high < 1.25, "pairs share what the machine does"
    assert ratio(side(1.0, 1.0), side(1.0, 1.0)) is None


@pytest.mark.parametrize("measured_gib, fails", [(10, False), (10.9, False), (11.2, True), (9.15, False), (9.0, True)])
def test_a_prediction_far_off_fails(tmp_path: Path, measured_gib: float, fails: bool) -> None:
    side = Side(10 * 2**30, measured_bytes=int(measured_gib * 2**30))
    result = StepResult("x", "y", 24.0, Shape(1, 2048, 1, 1), side, Side(0))
    code = step_suite.report(result, tmp_path / "x.json", {}, lambda: result.check_prediction("on"))
    assert code == fails and ("10.00 GiB predicted" in "".join(result.problems)) == fails


def test_what_there_is_is_written_when_memory_or_time_runs_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped_by(error: BaseException) -> StepResult:
        def work() -> None:
            result.on.measured_bytes = 2**30
            raise error

        result = StepResult("x", "y", 8.0, Shape(1, 2048, 1, 1), Side(2**30), Side(2**30))
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                step_suite.report(result, tmp_path / "x.json", {}, work)
        else:
            assert step_suite.report(result, tmp_path / "x.json", {}, work) == 1
        return result

    result = stopped_by(torch.cuda.OutOfMemoryError("tried to allocate 2 GiB\nlong advice"))
    assert result.problems == ["out of memory: tried to allocate 2 GiB"]
    stopped_by(KeyboardInterrupt())
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["on"]["measured_bytes"] == 2**30 and written["on_over_off"] is None
    assert "not measured" in capsys.readouterr().out


def test_recipes_read_over_shapes_keep_all_but_their_models(tmp_path: Path) -> None:
    plain, shaped = load_recipe("7b_8gb"), on_shapes("7b_8gb", tmp_path, ["training.micro_batch=2"])
    assert shaped.model.llm == str(tmp_path / "7b") and shaped.model.projector is None
    assert shaped.training == plain.training.model_copy(update={"micro_batch": 2})
    assert (shaped.lora, shaped.supervision, shaped.data) == (plain.lora, plain.supervision, plain.data)
    with pytest.raises(KeyError, match=r"no shape is known for the model"):
        on_shapes("demo_stage2", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_suite.main(["7b_8gb", "--limit-gib", "8", "--out", str(tmp_path / "x.json")]) == 2
    assert "needs a GPU" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
