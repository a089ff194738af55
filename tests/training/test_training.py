"""The training loop: exact accumulation, exact resume, what is logged, saved, refused and interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from basic_lite.data.pixel_table import on_device
from basic_lite.data.prepare import prepare_data
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.training.bundle_files import open_bundle
from basic_lite.training.step import TrainStep
from tests.support.marks import rest_long
from tests.support.runs import (
    GUARDED,
    LOUD,
    TERMS,
    WHOLE,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
    weights_of,
    write_data,
)


def order_of(folder: Path, changes: dict[str, Any]) -> list[int]:
    """The numbers of the records in the order of the first epoch."""
    recipe = tiny_recipe(folder, changes)
    sampler = prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None).sampler
    return list(sampler.order(0).tolist())


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({}, marks=pytest.mark.long),
        pytest.param({"supervision.token_weights": "uniform"}, marks=pytest.mark.long),
        pytest.param({"supervision.token_weights": 0.5, "supervision.direction": "mse"}, marks=pytest.mark.soak),
        GUARDED,
    ],
    ids=["attention", "uniform", "fixed-mse", "guarded"],
)
def test_one_by_eight_is_eight_by_one(tmp_path: Path, switches: dict[str, Any]) -> None:
    # Text-only samples and ragged lengths: means of means would differ.
    write_data(tmp_path, 11, text_only=5)
    base = {**WHOLE, **LOUD, **switches, "training.global_batch": 8, "training.max_steps": 2, "data.group_by": "none"}
    runs = [run(tmp_path, {**base, "training.micro_batch": micro, "name": f"micro{micro}"}) for micro in (1, 2, 8)]
    assert all(line["das"] > 0 and line["sds"] > 0 for line in steps_of(runs[0]))
    logged = [
        name for name in ("guard_conflict", "guard_ratio", "guard_ratio_after") if "supervision.guard" in switches
    ]
    for other in runs[1:]:
        assert_same_terms(runs[0], other, rel=2e-5)
        assert_same_terms(runs[0], other, rel=1e-3, names=tuple(logged))
        # Adam's first steps are sign-like, so rounding of tiny gradients is magnified; the rate is 1e-3.
        assert_same_weights(runs[0] / "final", other / "final", rtol=0, atol=5e-5)


def test_same_recipe_same_run(tmp_path: Path) -> None:
    one, other = run(tmp_path, {"name": "one", **LOUD}), run(tmp_path, {"name": "other", **LOUD})
    assert_same_terms(one, other, rel=0)
    assert_same_weights(one / "final", other / "final")


def test_evaluation_changes_no_training_loss(tmp_path: Path) -> None:
    data = {"path": str(write_data(tmp_path, 7)), "image_dir": str(tmp_path / "images")}
    changes = {"lora.dropout": 0.3, "data.workers": 0, "data.train": data}
    without = run(tmp_path, {**changes, "name": "without"})
    evaluated = run(
        tmp_path,
        {**changes, "name": "with", "data.eval": data, "training.eval_every": 1, "supervision.refinement_batches": 1},
    )
    assert_same_terms(without, evaluated, rel=0)
    assert [line["step"] for line in log_of(evaluated) if "eval_loss" in line] == [1, 2, 3, 4]


def test_eval_loss_is_a_mean_over_tokens(tmp_path: Path) -> None:
    """Whatever the batch size; here with answers of one to three words."""
    data = {"path": str(write_data(tmp_path, 4, text_only=3)), "image_dir": str(tmp_path / "images")}
    losses = []
    for micro in (1, 2, 8):
        changes = {"name": f"m{micro}", "data.eval": data, "training.eval_every": 1, "training.max_steps": 1}
        changes |= {"training.projector_learning_rate": 1e-12, "training.global_batch": 8, "data.group_by": "none"}
        folder = run(tmp_path, {**changes, "training.micro_batch": micro, "training.learning_rate": 1e-12})
        losses += [line["eval_loss"] for line in log_of(folder) if "eval_loss" in line]
    assert len(losses) == 3 and losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_zero_lambdas_are_no_supervision(tmp_path: Path) -> None:
    # Batches of text alone too: the projector's optimizer state must move on in them whether BASIC is on or off.
    write_data(tmp_path, 8, text_only=8)
    off = run(tmp_path, {"name": "off", "supervision.enabled": False, "lora.dropout": 0.1})
    # So small that nothing but the code path differs.
    tiny = {"supervision.lambda_das": 1e-30, "supervision.lambda_sds": 1e-30}
    on_in_name = run(tmp_path, {"name": "tiny_lambdas", **tiny, "lora.dropout": 0.1})
    assert_same_weights(off / "final", on_in_name / "final")
    zero = {"supervision.lambda_das": 0.0, "supervision.lambda_sds": 0.0}
    both = run(tmp_path, {"name": "zero", **zero, "lora.dropout": 0.1})
    other_stage = run(tmp_path, {"name": "stages", "supervision.stages": [1], "lora.dropout": 0.1})
    for one in (both, other_stage):
        assert_same_terms(off, one, rel=0, names=("loss", "lm"))
        assert_same_weights(off / "final", one / "final")
    on = run(tmp_path, {"name": "on", **LOUD, "lora.dropout": 0.1})
    assert steps_of(on)[-1]["lm"] != steps_of(off)[-1]["lm"]


@pytest.mark.parametrize("checkpointing", rest_long(True, False))
def test_lm_loss_of_every_step_is_transformers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    write_data(tmp_path, 9, text_only=3)
    real_loss, real_gradients = TrainStep.loss, TrainStep.gradients
    expected: dict[int, float] = {}

    def counted(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        expected[len(expected) + 1] = 0.0
        return real_gradients(self, *args, **kwargs)

    def compare(self: TrainStep, batch: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            theirs = LlavaForConditionalGeneration.forward(
                self.parts.model,
                **on_device(batch, self.device),
                num_items_in_batch=counts.labelled_tokens,
                use_cache=False,
            ).loss
        expected[len(expected)] += float(theirs)
        return real_loss(self, batch, counts, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "gradients", counted)
    monkeypatch.setattr(TrainStep, "loss", compare)
    folder = run(
        tmp_path, {**WHOLE, **LOUD, "training.micro_batch": 1, "training.gradient_checkpointing": checkpointing}
    )
    for line in steps_of(folder):
        assert line["lm"] == pytest.approx(expected[line["step"]], rel=1e-6)


def test_stage_two_starts_from_stage_ones_projector(tmp_path: Path) -> None:
    one = {"name": "one", "stage": 1, "lora.enabled": False, "data.template": "plain", "training.max_steps": 3}
    first = run(tmp_path, one)
    assert not (first / "final" / "adapter").exists()
    two = {
        "name": "two",
        "model.projector": str(first),
        "training.max_steps": 1,
        "training.projector_learning_rate": 0.0,
    }
    second = run(tmp_path, two)
    a, b = (load_file(folder / "final" / "projector.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    fresh = run(tmp_path, {**two, "name": "fresh", "model.projector": None})
    assert not torch.equal(
        a["linear_1.weight"], load_file(fresh / "final" / "projector.safetensors")["linear_1.weight"]
    )


def test_text_only_data_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path, 0, text_only=8)
    for changes in ({"stage": 1, "lora.enabled": False}, {}):
        with pytest.raises(UserError, match=r"no record of data.train has an image"):
            run(tmp_path, changes)


def test_a_run_that_meets_no_image_does_not_pass_for_trained(tmp_path: Path) -> None:
    data = write_data(tmp_path, 1, text_only=15)
    records = json.loads(data.read_text())
    records[-1]["conversations"][1]["value"] = "two " * 50  # the longest, so its batch is the first
    data.write_text(json.dumps(records))
    changes = {"training.max_steps": 1, "data.group_by": "none"}
    seed = next(seed for seed in range(9) if 0 not in order_of(tmp_path, {**changes, "seed": seed})[:4])
    with pytest.raises(UserError, match="none of the run's 1 steps had a sample with an image"):
        run(tmp_path, {**changes, "seed": seed})


def test_stage_one_with_text_only_batches_runs(tmp_path: Path) -> None:
    write_data(tmp_path, 4, text_only=8)
    changes = {"stage": 1, "lora.enabled": False, "training.max_steps": 6, "training.micro_batch": 4}
    folder = run(tmp_path, changes)
    assert len(steps_of(folder)) == 6
    assert any("das" not in line or line["das"] == 0 for line in steps_of(folder))


def test_a_part_without_gradient_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TrainStep.gradients

    def without_projector(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        out = real(self, *args, **kwargs)
        for parameter in self.parts.projector.linear_1.parameters():
            parameter.grad = None
        return out

    monkeypatch.setattr(TrainStep, "gradients", without_projector)
    with pytest.raises(UserError, match="projector linear_1: no gradient"):
        run(tmp_path)


def test_run_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path)
    with pytest.raises(UserError, match=r"already holds a finished run of this recipe; go on .*model.start="):
        run(tmp_path)
    with pytest.raises(UserError, match=r"already holds another run \(its recipe differs: seed: 0 → 5"):
        run(tmp_path, {"seed": 5})
    again = train(tiny_recipe(tmp_path), resume=True, console=quiet())
    assert again.steps == 4 and again.bundle == folder / "final"
    other = tmp_path / "runs" / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"")
    with pytest.raises(UserError, match="already holds other files and no run"):
        run(tmp_path, {"name": "photos"})


def test_a_mixed_bundle_is_refused(tmp_path: Path) -> None:
    from basic_lite.training.bundle import load_trained

    one, other = run(tmp_path, {"name": "one"}), run(tmp_path, {"name": "other", "seed": 1})
    (one / "final" / "projector.safetensors").write_bytes((other / "final" / "projector.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"projector.safetensors was changed"):
        load_trained(one, torch.device("cpu"))
    (other / "final" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors is missing"):
        open_bundle(other)
    with pytest.raises(UserError, match="there is no folder"):
        open_bundle(tmp_path / "nowhere")


def test_a_projector_for_another_model_is_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "a", {"stage": 1, "lora.enabled": False})
    from tests.support.models import write_llm

    write_llm(tmp_path / "b" / "llm", hidden_size=128)
    from tests.support.models import write_vision

    write_vision(tmp_path / "b" / "vision")
    with pytest.raises(UserError, match=r"model.projector: the projector in .* doesn't fit this model"):
        run(tmp_path / "b", {"model.projector": str(first)})


def test_bundle_loads_with_peft_and_transformers_alone(tmp_path: Path) -> None:
    """The adapter is in PEFT's layout: it loads on the plain LLaVA model, and gives the same logits."""
    from peft import PeftModel

    from basic_lite.model.llava import BasicLlavaForConditionalGeneration
    from basic_lite.training.bundle import load_trained

    folder = run(tmp_path, {**WHOLE, "quantization.mode": "none", "training.learning_rate": 1e-2})
    loaded, _ = load_trained(folder, torch.device("cpu"))
    from basic_lite.model.load import load_base

    base = load_base(tiny_recipe(tmp_path, {**WHOLE, "quantization.mode": "none"}), torch.device("cpu"))
    assert isinstance(base.model, BasicLlavaForConditionalGeneration)
    base.parts.projector.load_state_dict(load_file(folder / "final" / "projector.safetensors"))
    wrapped = PeftModel.from_pretrained(base.model, folder / "final" / "adapter").eval()
    ids = torch.tensor([[5, 6, *[base.parts.image_token_id] * 4, 9, 10]])
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        ours = loaded.model(input_ids=ids, pixel_values=pixels).logits
        theirs = wrapped(input_ids=ids, pixel_values=pixels).logits
        plain = wrapped.disable_adapter()
        with plain:
            without = wrapped(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, without, atol=1e-4)


def test_eight_bit_optimizer_keeps_the_projector_in_32_bit(tmp_path: Path) -> None:
    from basic_lite.model.adapt import adapt, lora_parameters
    from basic_lite.model.load import load_base
    from basic_lite.training.optimizer import make_optimizer

    recipe = tiny_recipe(tmp_path, {"lora.rank": 64, "training.optimizer": "adamw_8bit"})
    loaded = load_base(recipe, torch.device("cpu"))
    adapt(loaded.parts, recipe)
    optimizer = make_optimizer(loaded.parts, recipe.training, torch.device("cpu"))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    projector = [optimizer.state[p]["state1"].dtype for p in loaded.parts.projector.parameters()]
    assert set(projector) == {torch.float32}
    big = [p for p in lora_parameters(loaded.model).values() if p.numel() >= 4096]
    assert big and {optimizer.state[p]["state1"].dtype for p in big} == {torch.uint8}
    with pytest.raises(UserError, match=r"training.optimizer: paged_adamw_8bit"):
        run(tmp_path, {"training.optimizer": "paged_adamw_8bit", "name": "paged"})
    assert run(tmp_path, {"training.optimizer": "adamw", "name": "paged"})  # a refusal leaves the folder free


def test_log_holds_what_a_user_watches(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    folder = run(
        tmp_path,
        {
            "supervision.refinement_batches": 2,
            "training.trackers": ["tensorboard"],
            "data.eval": data,
            "training.eval_every": 2,
            "training.autocast": "bfloat16",
        },
    )
    line = steps_of(folder)[-1]
    for name in (
        *TERMS,
        "sum_a",
        "cos",
        "pairwise_cos",
        "norm_to_target",
        "norm_to_vocabulary",
        "nearest_special_share",
    ):
        assert isinstance(line[name], float), name
    assert line["tokens_per_s"] > 0 and line["peak_memory_gib"] > 0 and 0 <= line["sum_a"] <= 1
    assert {"lr_lora", "lr_projector"} <= line.keys()
    assert line["loss"] == pytest.approx(line["lm"] + line["das"] + 0.01 * line["sds"], rel=1e-3)
    curves = [entry for entry in log_of(folder) if "refinement" in entry]
    assert [entry["step"] for entry in curves] == [0, 2, 4]
    assert curves[0]["refinement"]["places"] == ["v", "h1", "h2", "h3", "h4", "target"]
    assert [entry["step"] for entry in log_of(folder) if "eval_loss" in entry] == [2, 4]
    assert list((folder / "tensorboard").iterdir())
    shared = [path.suffix for path in (folder / "final").rglob("*") if path.is_file()]
    assert set(shared) == {".json", ".safetensors"}
    manifest = json.loads((folder / "final" / "manifest.json").read_text())
    assert manifest["data"]["samples"] == 4 * 4 and manifest["data"]["epoch"] == pytest.approx(4 / 3)


def beyond_all_rates(folder: Path, changes: dict[str, Any]) -> Recipe:
    """A recipe whose numbers soon aren't finite; one from a file can't have such a rate."""
    recipe = tiny_recipe(folder, changes)
    recipe.training.projector_learning_rate = 1e30
    return recipe


@pytest.mark.parametrize("save_every", [1, 4])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, save_every: int) -> None:
    changes = {
        "training.max_grad_norm": 0.0,
        "training.scheduler": "constant",
        "training.warmup_ratio": 0.0,
        "training.max_steps": 9,
        "training.log_every": 100,
        "training.save_every": save_every,
        "supervision.enabled": False,
    }
    with pytest.raises(
        UserError,
        match=r"^(after step \d the weights are not finite .* so they were not saved|step \d has numbers that aren't)",
    ):
        train(beyond_all_rates(tmp_path, changes), console=quiet())
    folder = tmp_path / "runs" / "tiny"
    for bundle in [*folder.glob("checkpoint-*"), folder / "final"]:
        if (bundle / "projector.safetensors").exists():
            assert all(torch.isfinite(t).all() for t in weights_of(bundle).values()), bundle


def test_a_broken_picture_saves_what_was_learnt(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    changes = {"training.max_steps": 6, "data.group_by": "none", "training.global_batch": 2, "training.micro_batch": 1}
    changes |= {"data.check_images": "exists"}
    picture = tmp_path / "images" / f"{order_of(tmp_path, changes)[7]}.png"  # met in step 4
    good = picture.read_bytes()
    picture.write_bytes(good[:50])
    with pytest.raises(UserError, match=r"--resume, .*data.bad_records=drop; data.check_images=open finds"):
        run(tmp_path, changes)
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "checkpoint-3" / "optimizer.safetensors").exists()
    picture.write_bytes(good)
    run(tmp_path, changes, resume=True)
    assert [line["step"] for line in steps_of(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    changes = {"training.max_grad_norm": 0.0, "training.max_steps": 9}
    with pytest.raises(UserError, match=r"step \d has numbers that aren't finite: the LM loss"):
        train(beyond_all_rates(tmp_path, changes), console=quiet())


def test_out_of_range_layers_are_refused_before_loading(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"supervision.layers": 9})
    with pytest.raises(UserError, match=r"supervision.layers"):
        train(recipe, console=quiet())
    assert not (Path(recipe.output) / recipe.name).exists()  # a start that was refused leaves nothing
