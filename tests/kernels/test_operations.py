"""Who computes the operations: what ``auto`` picks, what an explicit choice refuses, and that all of them agree."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import operations as file
from basic_lite_kernels.operations import EAGER, KernelUnavailable, Operations, choose
from basic_lite_kernels.signatures import MassTokens
from tests.support import kernels as kit

# Before a test unsets TRITON_INTERPRET: it counts when kernels are defined.
if kit.HAS_TRITON:
    from basic_lite_kernels.triton_operations import TRITON, triton_or_eager

needs_triton = pytest.mark.skipif(not kit.HAS_TRITON, reason="triton isn't installed")
CUDA = torch.device("cuda", 1)
OPERATIONS = ["direction_loss", "row_scaling", "vocab_kl", "attention_mass"]


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    file._gpu_obstacle.cache_clear()
    yield
    file._gpu_obstacle.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that doesn't interpret kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, compiled: None) -> list[Any]:
    """Two cards that torch finds, and on which nobody has tried a kernel yet. The devices that it was asked about."""
    devices: list[Any] = []

    def name(device: Any = None) -> str:
        devices.append(device)
        return "a card"

    def capability(device: Any = None) -> tuple[int, int]:
        devices.append(device)
        return (8, 9)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    return devices


def call(
    operations: Operations, name: str, dtype: torch.dtype = torch.float32, device: torch.device = kit.DEVICE
) -> Tensor:
    """A small call of an operation, as supervision makes it: a gradient of v, or the mass."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return kit.draw_on_cpu(*shape, seed=seed).to(device, dtype)

    v, weights = draw(6, 16).requires_grad_(), draw(6, seed=3).abs()
    if name == "direction_loss":
        stream, positions = operations.target_stream("cosine"), torch.tensor([0, 1, 4, 7, 8, 9], device=device)
        with torch.no_grad():
            stream.add(draw(2, 5, 16, seed=1), positions, 0.25)
            stream.finish(draw(2, 5, 16, seed=2), positions, 0.75, v)
        return torch.autograd.grad(stream.loss(weights) * 2, v)[0]
    if name == "row_scaling":
        massive = torch.arange(16, device=device) == 3
        sizes = operations.row_scaling(draw(2, 5, 16, seed=1), torch.tensor([0, 1, 4], device=device), massive)
        return torch.cat([sizes.norm, sizes.factor])
    if name == "vocab_kl":
        excluded = torch.arange(40, device=device) < 3
        table = draw(40, 16, seed=2)
        loss = operations.vocab_kl(v, draw(6, 16, seed=1), table, weights, scale=0.5, excluded=excluded)
        return torch.autograd.grad(loss * 2, v)[0]
    visual = torch.zeros(2, 12, dtype=torch.bool, device=device)
    visual[:, 2:6] = True
    tokens = MassTokens.of(~visual, visual, torch.ones_like(visual))
    return operations.attention_mass(draw(2, 4, 12, 16), draw(2, 2, 12, 16, seed=1), scaling=0.25, tokens=tokens)


# ---- choosing


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch, compiled: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose("auto", kit.CPU)
    assert choice == (EAGER, "the Triton kernels can't run here: torch finds no NVIDIA or AMD GPU")
    with pytest.raises(KernelUnavailable, match=r"Triton kernels were asked for .* no NVIDIA"):
        choose("triton", kit.CPU)


def test_by_name() -> None:
    assert choose("reference", kit.CPU) == (EAGER, "asked for by name") and EAGER.name == "reference"
    with pytest.raises(ValueError, match="'cuda'; known are auto, triton, reference"):
        choose("cuda", kit.CPU)  # type: ignore[arg-type]


def test_a_model_on_the_cpu_of_a_machine_with_a_gpu(asked: list[Any]) -> None:
    assert choose("auto", kit.CPU) == (EAGER, "the Triton kernels can't run here: the model is on cpu, not a GPU")
    with pytest.raises(KernelUnavailable, match="the model is on cpu"):
        choose("triton", kit.CPU)
    assert not asked, "no card was looked at"


def test_a_card_that_is_too_old(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    choice = choose("auto", CUDA)
    assert choice.operations is EAGER and "a card has compute capability 7.5, the kernels need 8.0" in choice.reason
    with pytest.raises(KernelUnavailable, match=r"7\.5"):
        choose("triton", CUDA)


def test_without_triton(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("triton") or "triton_operations" in (args[2] if len(args) > 2 and args[2] else ()):
            raise ImportError("No module named 'triton'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    choice = choose("auto", CUDA)
    assert choice.operations is EAGER and "triton can't be imported (No module named 'triton')" in choice.reason
    with pytest.raises(KernelUnavailable, match="can't be imported"):
        choose("triton", CUDA)


@needs_triton
def test_a_trial_that_fails(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    """Here the trial is real, and there is no such card: whatever goes wrong ends in the reason."""

    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "device", broken)
    choice = choose("auto", CUDA)
    assert choice.operations is EAGER
    assert "a trial of vocab_kl failed (RuntimeError: Failed to find C compiler)" in choice.reason
    with pytest.raises(KernelUnavailable, match="C compiler"):
        choose("triton", CUDA)


@needs_triton
def test_a_trial_that_succeeds_once_a_device(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(file, "_trial_obstacle", tried.append)
    choice, by_name = choose("auto", CUDA), choose("triton", CUDA)
    assert (choice.operations.name, choice.reason) == ("triton", "a card")
    assert by_name == (TRITON, "asked for by name, a card")
    assert tried == [CUDA] and set(asked) == {CUDA}, "one trial, and no other card was looked at"
    choose("auto", torch.device("cuda", 0))
    assert tried == [CUDA, torch.device("cuda", 0)]


@needs_triton
def test_an_amd_card(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (0, 0))
    monkeypatch.setattr(file, "_trial_obstacle", lambda device: None)
    choice = choose("auto", CUDA)
    assert choice.operations.name == "triton" and choice.reason == "a card; attention_mass as plain PyTorch"
    with pytest.raises(KernelUnavailable, match="attention_mass: its kernels spill registers on AMD's cards"):
        choose("triton", CUDA)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_trial_can_tell_right_from_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: finite, not zero, and not what an operation gives that reads other numbers."""
    trial = file.TRIALS[name]
    found = trial(EAGER, kit.CPU)
    assert torch.isfinite(found).all() and found.norm() > 1e-3
    monkeypatch.setattr(torch.Tensor, "sin", lambda x: x.cos())
    assert kit.relative(trial(EAGER, kit.CPU), found) > file.TRIAL_ERROR


@kit.kernel_test
@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_pass_the_trial(name: str) -> None:
    if name == "attention_mass" and kit.INTERPRETED:
        pytest.skip("the trial is in bf16, which the interpreter multiplies wrongly")
    trial = file.TRIALS[name]
    assert kit.relative(trial(TRITON, kit.DEVICE), trial(EAGER, kit.DEVICE)) < file.TRIAL_ERROR


def test_the_interpreter_is_only_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    choice = choose("auto", kit.CPU)
    assert choice.operations is EAGER and "TRITON_INTERPRET" in choice.reason


# ---- the operations


@needs_triton
@pytest.mark.skipif(kit.INTERPRETED, reason="interpreted kernels take tensors on the CPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_a_kernel_does_not_take_goes_to_eager_code_and_is_said_once(name: str) -> None:
    lines: list[str] = []
    either = triton_or_eager(lines.append)
    for _ in range(2):
        assert torch.equal(call(either, name, device=kit.CPU), call(EAGER, name, device=kit.CPU))
    (line,) = lines
    assert f"({name}) runs as plain PyTorch" in line and "on cpu, not a GPU" in line
    with pytest.raises(KernelUnavailable, match=r"on cpu, not a GPU$"):
        call(TRITON, name, device=kit.CPU)


@kit.kernel_test
@pytest.mark.parametrize("name", OPERATIONS)
def test_auto_takes_kernels_where_it_can_and_says_each_reason(name: str) -> None:
    lines: list[str] = []
    either = triton_or_eager(lines.append)
    assert torch.equal(call(either, name), call(TRITON, name)) and not lines
    assert torch.equal(call(either, name, torch.float64), call(EAGER, name, torch.float64))
    assert len(lines) == 1 and "float64" in lines[0]


# Compiling the attention mass takes longer than all the others together.
SURROUNDED = [
    *(pytest.param(name, "autocast") for name in OPERATIONS),
    *(
        pytest.param(name, "compile", marks=pytest.mark.soak if name == "attention_mass" else pytest.mark.long)
        for name in OPERATIONS
    ),
]


@pytest.mark.parametrize("name, surroundings", SURROUNDED)
def test_eager_code_inside_autocast_and_torch_compile(name: str, surroundings: str) -> None:
    check_inside(EAGER, name, surroundings)


@kit.kernel_test
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("surroundings", ["autocast", "compile"])
def test_kernels_inside_autocast_and_torch_compile(name: str, surroundings: str) -> None:
    check_inside(TRITON, name, surroundings)


def check_inside(operations: Operations, name: str, surroundings: str) -> None:
    """Value and gradient of the first argument are what they are outside."""
    shapes = (6, 16), (6, 16), (6,)
    v, target, weights = (kit.draw_on_cpu(*shape, seed=i).to(kit.DEVICE) for i, shape in enumerate(shapes))
    table, positions = kit.draw_on_cpu(40, 16, seed=4).to(kit.DEVICE), torch.arange(6, device=kit.DEVICE)

    def step(x: Tensor) -> Tensor:
        x = x * 1.0
        if name in ("attention_mass", "row_scaling"):
            return call(operations, name) * 2 + x.sum()
        if name == "vocab_kl":
            return operations.vocab_kl(x, target, table, weights.abs(), scale=0.5) * 2 + x.sum()
        stream = operations.target_stream("cosine")
        stream.finish(target[None], positions, 0.5, x)
        return stream.loss(weights.abs()) * 2 + x.sum()

    def run(f: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = v.clone().requires_grad_()
        out = f(x)
        return [out.detach(), *torch.autograd.grad(out.sum(), x)]

    expected = run(step)
    if surroundings == "autocast":
        with torch.autocast(kit.DEVICE.type, dtype=torch.bfloat16):
            found = run(step)
    else:
        torch._dynamo.reset()
        found = run(torch.compile(step, backend="aot_eager"))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and kit.relative(x, y) < 1e-6


@kit.kernel_test
@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_agree_with_eager_code(name: str) -> None:
    choice = choose("triton", kit.DEVICE)
    assert choice.operations is TRITON and ("interpreter" in choice.reason) == kit.INTERPRETED
    ours, expected = call(TRITON, name), call(EAGER, name)
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    assert kit.relative(ours, expected) < (2e-3 if name == "attention_mass" and not kit.INTERPRETED else 1e-5)


@kit.kernel_test
@kit.only_gpu
def test_auto_on_a_gpu_is_triton_after_a_real_trial() -> None:
    choice = choose("auto", kit.DEVICE)
    assert (choice.operations.name, choice.reason) == ("triton", torch.cuda.get_device_name(kit.DEVICE))


@pytest.mark.soak
def test_through_the_interpreter() -> None:
    kit.run_interpreted(__file__)
