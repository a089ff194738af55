"""Offloading to the host, part by part: what goes, what stays, what comes back."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from basic_lite.errors import UserError
from basic_lite.model import offload
from basic_lite.model.offload import ActivationOffload, Offloaded, RestOnHost, empty_host

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda", 0)] * torch.cuda.is_available()

# --- activations --------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """One layer that runs ``work``, then an ``exp``, which saves its output."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.layers = nn.ModuleList([nn.Identity()])
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[0](self.work(self, x)).exp()
        return out


def gradients(body: Body, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    body.weight.grad = None
    body(x).sum().backward()
    return [g for g in (x.grad, body.weight.grad) if g is not None]


WORK: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "not the weight, nor a view of it": (lambda body, x: x @ body.weight.t(), [(4, 8)]),
    "saved twice": (lambda body, x: x * x, [(4, 8), (4, 8)]),
    "not one that isn't contiguous": (lambda body, x: x.t().sin(), []),
    "a part of a larger one": (lambda body, x: x[1:3].sin(), [(2, 8)]),
    "not integers": (lambda body, x: x[torch.tensor([1, 0, 0])], []),
    "not a mask": (lambda body, x: torch.where(x > 0, x, -x), []),
    "changed in place later": (lambda body, x: (x * 2).sin().add_(1), [(4, 8)]),
}


@pytest.mark.parametrize("work, moved", WORK.values(), ids=WORK)
def test_what_goes_to_the_host(work: Any, moved: list[Any], to_host: list[Any]) -> None:
    torch.manual_seed(0)
    x, body = torch.randn(4, 8), Body(work)
    plain = gradients(body, x)
    ActivationOffload(body, body.layers, CPU)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(body, x), strict=True))
    assert to_host == moved


def test_small_tensors_stay(to_host: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body(lambda body, x: x.sin())
    ActivationOffload(body, body.layers, CPU)
    monkeypatch.setattr(offload, "MIN_BYTES", 4 * 8 * 4 + 1)
    gradients(body, torch.ones(4, 8))
    assert not to_host
    gradients(body, torch.ones(5, 8))
    assert to_host == [(5, 8)]


def test_a_tensor_elsewhere_stays(to_host: list[Any]) -> None:
    body = Body(lambda body, x: x.sin())
    ActivationOffload(body, body.layers, torch.device("cuda"))
    gradients(body, torch.ones(4, 8))  # on the CPU
    assert not to_host


def test_the_device_lets_go_and_the_host_has_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    packed: list[Any] = []
    pack = ActivationOffload._pack
    monkeypatch.setattr(ActivationOffload, "_pack", lambda self, t: packed.append(pack(self, t)) or packed[-1])
    kept: list[Any] = []

    def work(body: Body, x: Tensor) -> Tensor:
        doubled = x * 2
        kept.append(weakref.ref(doubled.untyped_storage()))
        return doubled.sin()

    body = Body(work)
    ActivationOffload(body, body.layers, CPU)
    loss = body(torch.ones(4, 8, requires_grad=True)).sum()
    gc.collect()
    assert kept[0]() is None
    hosts = [p.host for p in packed if isinstance(p, Offloaded)]
    assert len(hosts) == 1 and not hosts[0].requires_grad
    loss.backward()


def test_without_gradients_or_in_eval_mode_nothing_is_moved(to_host: list[Any]) -> None:
    body = Body(lambda body, x: x.sin())
    ActivationOffload(body, body.layers, CPU)
    with torch.no_grad():
        assert not body(torch.ones(4, 8)).requires_grad
    gradients(body.eval(), torch.ones(4, 8))
    assert not to_host
    gradients(body.train(), torch.ones(4, 8))
    assert len(to_host) == 1


def test_an_error_in_a_layer_leaves_no_hooks_behind(to_host: list[Any]) -> None:
    def work(body: Body, x: Tensor) -> Tensor:
        raise RuntimeError("no memory")

    body = Body(work)
    ActivationOffload(body, body.layers, CPU)
    with pytest.raises(RuntimeError, match="no memory"):
        body(torch.ones(4, 8, requires_grad=True))
    torch.ones(4, 8, requires_grad=True).sin().sum().backward()
    assert not to_host


class Stack(nn.Module):
    """A frozen tower, then checkpointed layers, with junk written into whatever memory has become free."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.tower = nn.Linear(width, width).requires_grad_(False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tower(x)
        for layer in self.layers:
            x = checkpoint(lambda y, layer=layer: layer(y).sin(), x, use_reentrant=False)
            for _ in range(3):
                torch.full_like(x, torch.nan)
        return x


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_memory_that_is_used_anew_spoils_nothing(device: torch.device) -> None:
    """Tensors of the real size, step after step, never waiting for the device: a copy that came late would show."""
    torch.manual_seed(0)
    rows, width, steps = (512, 512, 2) if device.type == "cpu" else (8192, 1024, 20)
    stack = Stack(6, width).to(device)
    moved = copy.deepcopy(stack)
    RestOnHost(moved.tower, device)
    offloading = ActivationOffload(moved, moved.layers, device)
    assert empty_host(torch.empty(8), pinned=device.type == "cuda").is_pinned() == (device.type == "cuda")
    copies: list[tuple[int, ...]] = []
    to_host = offloading.to_host
    offloading.to_host = lambda t: copies.append(tuple(t.shape)) or to_host(t)  # type: ignore[method-assign]
    inputs = torch.randn(steps, rows, width, device=device)
    for x in inputs:
        for model in (stack, moved):
            model(x).square().sum().backward()  # adds up
    assert copies == [(rows, width)] * 6 * steps
    for a, b in zip(stack.layers.parameters(), moved.layers.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU shows it")
def test_the_gpu_holds_less() -> None:
    device = torch.device("cuda", 0)
    peaks = []
    for on in (False, True):
        stack = Stack(6, 1024).to(device)
        if on:
            RestOnHost(stack.tower, device)
            ActivationOffload(stack, stack.layers, device)
        x = torch.randn(16384, 1024, device=device)  # 64 MiB, as each layer's input
        stack(x).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stack(x).sum().backward()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
    # Of six inputs; on a CPU, whose allocations a profiler counts, it is four fewer at the peak.
    assert peaks[0] - peaks[1] >= 3.75 * 64


# --- the tower ----------------------------------------------------------------------------------------------------


def storages(module: nn.Module) -> list[int]:
    return [p.untyped_storage().data_ptr() for p in module.parameters()]


def test_weights_visit_the_device_for_the_forward_only() -> None:
    torch.manual_seed(0)
    inside: list[list[int]] = []

    class Tower(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            inside.append(storages(self))
            return super().forward(x)

    tower = Tower(8, 8).requires_grad_(False)
    x, parameters = torch.randn(2, 8), list(tower.parameters())
    before, first = tower(x), storages(tower)
    resting = RestOnHost(tower, CPU)
    home = [t.untyped_storage().data_ptr() for t in resting.host]
    assert storages(tower) == home and not set(home) & set(first)
    for _ in range(2):
        assert torch.equal(tower(x), before)
        assert not set(inside[-1]) & set(home)
        assert storages(tower) == home
    # As `.to(device)` by the Trainer: the parameters get other data, which goes with the next forward.
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    assert torch.equal(tower(x), before) and storages(tower) == home
    assert all(a is b for a, b in zip(tower.parameters(), parameters, strict=True))


def test_trained_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="only frozen ones"):
        RestOnHost(nn.Linear(2, 2), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned")
def test_memory_that_can_not_be_pinned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", full)
    with pytest.raises(MemoryError, match=r"2 MiB of pinned host memory could not be had"):
        empty_host(torch.ones(2**19), pinned=True)
    with pytest.raises(UserError, match=r"set model\.tower_on_host to false"):
        RestOnHost(torch.nn.Linear(2, 2).requires_grad_(False), CPU)
