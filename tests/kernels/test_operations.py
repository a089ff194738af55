"""Who computes the operations: what ``auto`` picks, what an explicit choice refuses, and that all of them agree."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import dispatch, reference
from tests.support.kernels import (
    DEVICE,
    HAS_TRITON,
    INTERPRETED,
    draw,
    kernel_test,
    only_gpu,
    relative,
    run_interpreted,
)

# Before a test unsets TRITON_INTERPRET: it counts when kernels are defined.
if HAS_TRITON:
    for _file in dispatch.OPERATIONS.values():
        importlib.import_module(f"basic_lite_kernels.{_file}")

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton isn't installed")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    dispatch._gpu_obstacle.cache_clear()
    yield
    dispatch._gpu_obstacle.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that doesn't interpret kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, compiled: None) -> None:
    """A card that torch finds, and on which nobody has tried a kernel yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))


def arguments(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A small call of each operation, as supervision makes it."""
    if name == "capture_layer":
        return (draw(6, 16, seed=4), draw(2, 5, 16), torch.tensor([0, 1, 4, 7, 8, 9], device=DEVICE), 0.25), {}
    if name == "direction_loss":
        return (draw(6, 16), draw(6, 16, seed=1), draw(6, seed=2).abs(), "cosine"), {}
    if name == "vocab_kl":
        excluded = torch.arange(40, device=DEVICE) < 3
        table = draw(40, 16, seed=2)
        return (draw(6, 16), draw(6, 16, seed=1), table, draw(6, seed=3).abs()), {"scale": 0.5, "excluded": excluded}
    visual = torch.zeros(2, 12, dtype=torch.bool, device=DEVICE)
    visual[:, 2:6] = True
    masks = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
    return (draw(2, 4, 12, 16), draw(2, 2, 12, 16, seed=1)), {"scaling": 0.25, "longest": 8, **masks}


# ---- choosing


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch, compiled: None, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        choice = dispatch.choose("auto")
    assert choice.operations is reference and choice.name == "reference"
    assert choice.reason == "the Triton kernels can't run here: torch finds no NVIDIA or AMD GPU"
    assert f"BASIC operations: reference ({choice.reason})" in caplog.text
    with pytest.raises(dispatch.KernelUnavailable, match=r"Triton kernels were asked for .* no NVIDIA"):
        dispatch.choose("triton")


def test_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert dispatch.choose("reference") == ("reference", "asked for by name", reference)
    assert "asked for by name" in caplog.text
    with pytest.raises(ValueError, match="'cuda'; known are auto, triton, reference"):
        dispatch.choose("cuda")  # type: ignore[arg-type]


def test_a_card_that_is_too_old(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    choice = dispatch.choose()
    assert choice.operations is reference and "a card has compute capability 7.5" in choice.reason
    with pytest.raises(dispatch.KernelUnavailable, match=r"7\.5"):
        dispatch.choose("triton")


def test_without_triton(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    found = importlib.import_module

    def missing(name: str, *rest: Any) -> ModuleType:
        if name == "triton":
            raise ImportError("No module named 'triton'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    choice = dispatch.choose()
    assert choice.operations is reference
    assert "triton can't be imported (No module named 'triton')" in choice.reason
    with pytest.raises(dispatch.KernelUnavailable, match="can't be imported"):
        dispatch.choose("triton")


@needs_triton
def test_a_trial_that_fails(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    """Here the trial is real, and there is no such card: whatever goes wrong ends in the reason."""

    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "linspace", broken)
    choice = dispatch.choose()
    assert choice.operations is reference
    assert "a trial of vocab_kl failed (RuntimeError: Failed to find C compiler)" in choice.reason
    with pytest.raises(dispatch.KernelUnavailable, match="C compiler"):
        dispatch.choose("triton")


@needs_triton
def test_a_trial_that_succeeds(monkeypatch: pytest.MonkeyPatch, gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    tried = []
    monkeypatch.setattr(dispatch, "_trial_obstacle", lambda: tried.append(1))
    with caplog.at_level(logging.INFO):
        choice = dispatch.choose()
        by_name = dispatch.choose("triton")
    assert (choice.name, choice.reason) == ("triton", "a card")
    assert (by_name.name, by_name.reason) == ("triton", "asked for by name, a card")
    assert "BASIC operations: triton (a card)" in caplog.text
    assert len(tried) == 1, "once a process"


@needs_triton
def test_an_amd_card(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (0, 0))
    monkeypatch.setattr(dispatch, "_trial_obstacle", lambda: None)
    assert dispatch.choose("auto").name == "triton"
    with pytest.raises(dispatch.KernelUnavailable, match="attention_mass on an AMD card"):
        dispatch.choose("triton")
    positional, _ = arguments("attention_mass")
    assert dispatch._unread("attention_mass", positional) == dispatch.AMD
    assert dispatch._unread("vocab_kl", arguments("vocab_kl")[0]) is None


@pytest.mark.parametrize("name", ["vocab_kl", "direction_loss", "attention_mass"])
def test_a_trial_can_tell_right_from_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, on the CPU: finite, not zero, and not what an operation gives that forgets its inputs."""
    operation = getattr(reference, name)
    found = dispatch._trial(name, operation, "cpu")
    assert torch.isfinite(found).all() and found.norm() > 1e-3
    monkeypatch.setattr(torch.Tensor, "sin", lambda x: x.cos())
    other = dispatch._trial(name, operation, "cpu")
    assert float((other - found).norm() / found.norm()) > 0.05


@kernel_test
@pytest.mark.parametrize("name", ["vocab_kl", "direction_loss", "attention_mass"])
def test_kernels_pass_the_trial(name: str) -> None:
    kernel = getattr(importlib.import_module(f"basic_lite_kernels.{name}"), name)
    truth = dispatch._trial(name, getattr(reference, name), DEVICE.type)
    if name == "attention_mass" and INTERPRETED:
        pytest.skip("the trial is in bf16, which the interpreter multiplies wrongly")
    assert relative(dispatch._trial(name, kernel, DEVICE.type), truth) < 0.05


def test_the_interpreter_is_only_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    choice = dispatch.choose("auto")
    assert choice.operations is reference and "TRITON_INTERPRET" in choice.reason


# ---- the operations


@needs_triton
@pytest.mark.parametrize("name", dispatch.OPERATIONS)
def test_signatures_are_the_references(name: str) -> None:
    kernel = getattr(importlib.import_module(f"basic_lite_kernels.{dispatch.OPERATIONS[name]}"), name)
    expected = inspect.signature(getattr(reference, name)).parameters
    found = inspect.signature(kernel).parameters
    assert {k: p.kind for k, p in expected.items()} == {k: found[k].kind for k in found if k in expected}
    assert [k for k in found if k in expected] == list(expected)
    for extra in found.keys() - expected.keys():
        assert found[extra].default is not inspect.Parameter.empty
    operations = dispatch._triton_operations(falls_back=True)
    assert inspect.signature(getattr(operations, name)) == inspect.signature(getattr(reference, name))


@needs_triton
@pytest.mark.parametrize("name", dispatch.OPERATIONS)
def test_tensors_on_the_cpu_of_a_machine_with_a_gpu(
    name: str, compiled: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.kernels.DEVICE", torch.device("cpu"))
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cpu"))
    positional, named = arguments(name)
    expected = getattr(reference, name)(*(x.clone() if isinstance(x, Tensor) else x for x in positional), **named)
    operation = getattr(dispatch._triton_operations(falls_back=True), name)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            copies = [x.clone() if isinstance(x, Tensor) else x for x in positional]
            assert torch.equal(operation(*copies, **named), expected)
    assert caplog.text.count(f"{name} by the reference, for tensors on cpu") == 1
    with pytest.raises(dispatch.KernelUnavailable, match=f"{name} got tensors on cpu"):
        getattr(dispatch._triton_operations(falls_back=False), name)(*positional, **named)


@pytest.mark.parametrize("name", dispatch.OPERATIONS)
@pytest.mark.parametrize("surroundings", ["autocast", "compile"])
def test_the_reference_inside_autocast_and_torch_compile(name: str, surroundings: str) -> None:
    check_inside(reference, name, surroundings)


@kernel_test
@pytest.mark.parametrize("name", dispatch.OPERATIONS)
@pytest.mark.parametrize("surroundings", ["autocast", "compile"])
def test_kernels_inside_autocast_and_torch_compile(name: str, surroundings: str) -> None:
    check_inside(dispatch.choose("triton").operations, name, surroundings)


def check_inside(operations: ModuleType, name: str, surroundings: str) -> None:
    """Value and gradient of the first argument are what they are outside."""
    positional, named = arguments(name)
    differentiable = name in ("direction_loss", "vocab_kl")

    def step(first: Tensor, *rest: Any) -> Tensor:
        out: Tensor = getattr(operations, name)(first * 1.0, *rest, **named)
        return out * 2 + first.sum() if differentiable else out * 2

    def run(f: Callable[..., Tensor]) -> list[Tensor]:
        first = positional[0].clone().requires_grad_(differentiable)
        out = f(first, *positional[1:])
        return [out.detach(), *(torch.autograd.grad(out, first) if differentiable else ())]

    expected = run(step)
    if surroundings == "autocast":
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            found = run(step)
    else:
        torch._dynamo.reset()
        found = run(torch.compile(step, backend="aot_eager"))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and relative(x, y) < 1e-6


@kernel_test
@pytest.mark.parametrize("name", dispatch.OPERATIONS)
def test_kernels_agree_with_the_reference(name: str) -> None:
    choice = dispatch.choose("triton")
    assert choice.name == "triton" and ("interpreter" in choice.reason) == INTERPRETED
    positional, named = arguments(name)
    copies = [x.clone() if isinstance(x, Tensor) else x for x in positional]
    ours = getattr(choice.operations, name)(*copies, **named)
    expected = getattr(reference, name)(*positional, **named)
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    assert relative(ours, expected) < (2e-3 if name == "attention_mass" and not INTERPRETED else 1e-5)


@kernel_test
@only_gpu
def test_auto_on_a_gpu_is_triton_after_a_real_trial() -> None:
    choice = dispatch.choose("auto")
    assert (choice.name, choice.reason) == ("triton", torch.cuda.get_device_name())


def test_through_the_interpreter() -> None:
    run_interpreted(__file__)
