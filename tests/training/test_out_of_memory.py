"""Out of memory: smaller micro-batches make the same steps; where none is smaller, the run says what to change."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from basic_lite.data.batches import Collator
from basic_lite.data.pixel_table import TABLE
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import Interrupted, UserError, is_out_of_memory
from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.rehearsal import advice
from basic_lite.run import train
from basic_lite.training import refinement_log, step
from basic_lite.training.recovery import slices
from basic_lite.training.step import TrainStep
from tests.support.marks import rest_long
from tests.support.runs import (
    GUARDED,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    steps_of,
    whole_recipe,
    write_data,
)

IMAGE = 7
CUDNN = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a tensor")
NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB\nand much more"


def little_memory(monkeypatch: pytest.MonkeyPatch, most: Callable[[int], int], where: str) -> list[int]:
    """Micro-batches of more than ``most(call)`` samples run out of memory, in the forward or amid the backward.

    Returns the sizes that were tried, which grows.
    """
    tried: list[int] = []

    loss = TrainStep.loss

    def limited(self: TrainStep, batch: Any, *args: Any, **rest: Any) -> Any:
        samples = len(batch["input_ids"])
        if isinstance(batch.get("pixel_values"), FakeTensor):  # the rehearsal that the advice comes from
            return loss(self, batch, *args, **rest)
        fails = samples > most(len(tried))
        tried.append(samples)
        if fails and where == "forward":
            raise torch.OutOfMemoryError(NO_MEMORY)
        result = loss(self, batch, *args, **rest)
        if fails:
            # The last layer's adapters have their gradients when the first layer's turn comes.
            handle = self.parts.layers[0].mlp.register_forward_pre_hook(lambda *_: no_memory(handle))
        return result

    def no_memory(handle: Any) -> None:
        handle.remove()
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(TrainStep, "loss", limited)
    return tried


def recipe(folder: Path, changes: dict[str, Any], count: int = 22) -> Any:
    if not (folder / "data.json").exists():
        write_data(folder, count, text_only=2)
    common = {"training.micro_batch": 4, "training.global_batch": 8, "lora.dropout": 0.2, "training.max_steps": 3}
    return whole_recipe(folder, {**common, **changes})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path, dict[str, Any]]]:
    """Runs with smaller micro-batches, each made once: their place, the run, and what it has besides."""
    place = tmp_path_factory.mktemp("small")

    @cache
    def of(most: int) -> tuple[Path, Path, dict[str, Any]]:
        changes = {"data.padding_side": "left" if most == 1 else "right", **(GUARDED if most == 1 else {})}
        made = train(recipe(place, {**changes, "training.micro_batch": most, "name": f"small{most}"}), console=quiet())
        return place, made.folder, changes

    return of


@pytest.mark.parametrize("where", rest_long("backward", "forward"))
@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_the_run_is_the_one_with_the_smaller_micro_batch(
    small: Callable[[int], tuple[Path, Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, where: str, most: int
) -> None:
    place, expected, changes = small(most)
    tried = little_memory(monkeypatch, lambda call: most, where)
    console = quiet()
    halved = train(recipe(place, {**changes, "name": f"halved{most}-{where}"}), console=console).folder
    assert_same_weights(expected / "final", halved / "final")
    assert_same_terms(expected, halved, rel=1e-6)
    sizes = [4, 2, 1][: 3 if most == 1 else 2]
    assert tried[: len(sizes)] == sizes and max(tried[len(sizes) :]) == most
    records = [line["out_of_memory"] for line in log_of(halved) if "out_of_memory" in line]
    assert records == [{"micro_batch": a, "now": b} for a, b in pairwise(sizes)]
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"accumulated {8 // most} times; the global batch stays 8" in said
    assert f"Set training.micro_batch={most} to begin with that" in said


@pytest.mark.long
def test_a_later_micro_batch_makes_the_whole_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of the step's earlier micro-batches are there once, not twice."""
    changes = {"lora.dropout": 0.0}
    small = train(recipe(tmp_path, {**changes, "training.micro_batch": 2, "name": "small"}), console=quiet()).folder
    tried = little_memory(monkeypatch, lambda call: 4 if call < 3 else 2, "backward")
    halved = train(recipe(tmp_path, {**changes, "name": "halved"}), console=quiet()).folder
    # Two in step 1, the first of step 2, its second that fails; then step 2 from its beginning, and step 3.
    assert tried[:8] == [4, 4, 4, 4, 2, 2, 2, 2] and max(tried[4:]) == 2
    assert_same_terms(small, halved, rel=1e-5)
    assert_same_weights(small / "final", halved / "final", rtol=1e-4, atol=1e-6)


@pytest.mark.soak
def test_a_single_sample_without_memory_stops_with_advice_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"training.micro_batch": 2, "lora.dropout": 0.0}
    whole = train(recipe(tmp_path, {**plain, "name": "whole"}), console=quiet()).folder
    changes = {**plain, "name": "broken"}
    with monkeypatch.context() as patch:
        patch.setattr(advice, "memory_of", lambda device: (2**19, 2**18))
        little_memory(patch, lambda call: 4 if call < 4 else 0, "backward")
        with pytest.raises(UserError) as caught:
            train(recipe(tmp_path, changes), console=quiet())
    text = str(caught.value)
    assert "out of memory in step 2 with a micro-batch of 1: CUDA out of memory" in text and "much more" not in text
    assert "by the estimate this recipe needs" in text and "cheapest first" in text and " KiB less, not yet (" in text
    resumed = train(recipe(tmp_path, changes), resume=True, console=quiet()).folder
    assert_same_weights(whole / "final", resumed / "final", rtol=1e-4, atol=1e-6)
    assert steps_of(resumed)[-1]["step"] == 3


@pytest.mark.long
def test_a_step_without_memory_leaves_the_dropout_of_the_next_try_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training.micro_batch": 1, "training.global_batch": 2, "training.max_steps": 2, "data.eval": None}
    whole = train(recipe(tmp_path, {**changes, "name": "whole"}), console=quiet()).folder
    with monkeypatch.context() as patch:
        little_memory(patch, lambda call: 1 if call < 2 else 0, "backward")
        with pytest.raises(UserError, match="out of memory in step 2 with a micro-batch of 1"):
            train(recipe(tmp_path, {**changes, "name": "broken"}), console=quiet())
    resumed = train(recipe(tmp_path, {**changes, "name": "broken"}), resume=True, console=quiet()).folder
    assert_same_weights(whole / "final", resumed / "final")


@pytest.mark.long
def test_a_run_that_was_halved_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"training.save_every": 1, "data.eval": None}
    little_memory(monkeypatch, lambda call: 2, "backward")
    whole = train(recipe(tmp_path, {**changes, "name": "whole"}), console=quiet()).folder
    monkeypatch.undo()

    def stops(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        update(self)

    update = TrainStep.update
    with monkeypatch.context() as patch:
        little_memory(patch, lambda call: 2, "backward")
        patch.setattr(TrainStep, "update", stops)
        with pytest.raises(Interrupted):
            train(recipe(tmp_path, {**changes, "name": "halves"}), console=quiet())
    console = quiet()
    resumed = train(recipe(tmp_path, {**changes, "name": "halves"}), resume=True, console=console).folder
    assert "continues with a micro-batch of 2" in console.file.getvalue()  # type: ignore[attr-defined]
    assert_same_weights(whole / "final", resumed / "final")
    assert_same_terms(whole, resumed, rel=1e-6)


@pytest.mark.parametrize("micro, halves", [(9, [3, 1]), (5, [1]), (6, [3, 2, 1])])
def test_what_it_is_lowered_to_could_have_been_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int, halves: list[int]
) -> None:
    little_memory(monkeypatch, lambda call: 1, "forward")
    sizes = {"training.micro_batch": micro, "training.global_batch": micro, "training.max_steps": 1}
    folder = train(recipe(tmp_path, sizes), console=quiet()).folder
    assert [line["out_of_memory"]["now"] for line in log_of(folder) if "out_of_memory" in line] == halves


@pytest.mark.long
def test_an_evaluation_without_memory_is_made_of_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    changes = {"data.eval": data, "training.eval_every": 2, "training.micro_batch": 4, "lora.dropout": 0.0}
    plain = train(recipe(tmp_path, {**changes, "name": "plain"}), console=quiet()).folder
    forward = BasicLlavaForConditionalGeneration.forward

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training and len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BasicLlavaForConditionalGeneration, "forward", limited)
    console = quiet()
    halved = train(recipe(tmp_path, {**changes, "name": "halved"}), console=console).folder
    losses = [[line["eval_loss"] for line in log_of(run) if "eval_loss" in line] for run in (plain, halved)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "out of memory in the evaluation after step 2" in said


@pytest.mark.soak
def test_an_evaluation_without_any_memory_saves_the_state_after_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    changes = {"data.eval": data, "training.eval_every": 2, "training.micro_batch": 1}
    plain = train(recipe(tmp_path, {**changes, "name": "plain"}), console=quiet()).folder
    forward = BasicLlavaForConditionalGeneration.forward

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training and kwargs.get("labels") is not None:  # loading looks at logits once
            raise torch.OutOfMemoryError(NO_MEMORY)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(BasicLlavaForConditionalGeneration, "forward", limited)
        with pytest.raises(UserError, match="in the evaluation after step 2 with a micro-batch of 1"):
            train(recipe(tmp_path, {**changes, "name": "broken"}), console=quiet())
    resumed = train(recipe(tmp_path, {**changes, "name": "broken"}), resume=True, console=quiet()).folder
    assert_same_weights(plain / "final", resumed / "final")  # dropout included


@pytest.mark.long
def test_uniform_weights_are_measured_in_what_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"supervision.token_weights": "uniform"}
    plain = train(recipe(tmp_path, {**changes, "training.micro_batch": 2, "name": "plain"}), console=quiet()).folder
    capture = step.Supervision.capture

    def limited(self: Any, layout: Any, **kwargs: Any) -> Any:
        if len(layout.valid) > 2:
            raise RuntimeError("CUDA error: out of memory")
        return capture(self, layout, **kwargs)

    monkeypatch.setattr(step.Supervision, "capture", limited)
    halved = train(recipe(tmp_path, {**changes, "name": "halved"}), console=quiet()).folder
    assert_same_weights(plain / "final", halved / "final")


def test_a_refinement_curve_without_memory_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(refinement_log, "see_patches", fails)
    console = quiet()
    done = train(recipe(tmp_path, {"supervision.refinement_batches": 1}), console=console)
    assert done.steps == 3
    assert "no refinement curve: not enough memory" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.long
def test_other_errors_and_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Any:
        def raising(*args: Any, **kwargs: Any) -> Any:
            raise error

        return raising

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "loss", fails(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            train(recipe(tmp_path, {"name": "shapes"}), console=quiet())
    outside = "outside a step's forward and backward"
    places = {"basic_lite.training.assembly.load_base": "while the model was loaded", "torch.optim.AdamW.step": outside}
    for target, when in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, fails(torch.OutOfMemoryError(NO_MEMORY)))
            with pytest.raises(UserError, match=f"out of memory .*{when}.*: CUDA out of memory"):
                train(recipe(tmp_path, {"name": "other"}), console=quiet())


def test_what_counts_as_out_of_memory() -> None:
    for error in (
        torch.OutOfMemoryError(NO_MEMORY),
        MemoryError(),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ):
        assert is_out_of_memory(error), error
    for other in (RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory"), CUDNN):
        assert not is_out_of_memory(other), other


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_slices_are_what_the_collator_makes_of_them(padding_side: Any, in_bytes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 256, generator=generator)
    samples: list[dict[str, Any]] = []
    for images, words in ((1, 5), (0, 9), (2, 3), (1, 1), (0, 2), (0, 3), (3, 2)):
        ids = [1, *[IMAGE] * (4 * images), *range(10, 10 + words)]
        samples.append({"input_ids": ids, "labels": [IGNORE, *ids[1:]]})
        if in_bytes and images:
            pictures = torch.randint(256, (images, 2, 2, 3), dtype=torch.uint8, generator=generator)
            samples[-1] |= {"pixel_values": pictures, TABLE: table}
        elif not in_bytes:
            samples[-1]["pixel_values"] = torch.randn(images, 3, 2, 2, generator=generator)
    collate = Collator(pad_token_id=0, padding_side=padding_side)
    for size in range(1, 9):
        parts = list(slices(collate(samples), size, IMAGE))
        alone = [collate(samples[i : i + size]) for i in range(0, len(samples), size)]
        assert len(parts) == len(alone)
        for part, expected in zip(parts, alone, strict=True):
            assert part.keys() == expected.keys()
            for name in part:
                assert torch.equal(part[name], expected[name]), (size, name)
