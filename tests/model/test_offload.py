"""Offloading to the host: the same bits, what goes and what stays, and that a run lives with it."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from basic_lite.console import speaker
from basic_lite.data.prepare import prepare_data
from basic_lite.errors import UserError
from basic_lite.model import offload
from basic_lite.model.audit import audit
from basic_lite.model.frontend import load_frontend
from basic_lite.model.offload import ActivationOffload, Offloaded, RestOnHost, empty_host
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.run import load_for_training, supervise, train
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.train.arguments import check_arguments
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.step import micro_batch_loss
from tests.support.runs import log_of, quiet, steps_of, tiny_recipe, write_data

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda", 0)] * torch.cuda.is_available()
LAYERS = 4  # of the tiny LLM
OFFLOAD, TOWER = {"training.offload_activations": True}, {"model.tower_on_host": True}


@pytest.fixture
def to_host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all activations that are offloaded, whatever their size."""
    shapes: list[tuple[int, ...]] = []
    really = ActivationOffload.to_host

    def noted(self: ActivationOffload, tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return really(self, tensor)

    monkeypatch.setattr(ActivationOffload, "to_host", noted)
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    return shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("offload")
    write_data(root, 8)
    tiny_recipe(root)
    return root


# --- the same bits ------------------------------------------------------------------------------------------------


def two_steps(recipe: Recipe) -> Iterator[Tensor]:
    """Losses and gradients of two optimizer steps of two micro-batches, then the weights."""
    torch.manual_seed(3)
    frontend = load_frontend(recipe.model)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    supervision = supervise(recipe, loaded, speaker(quiet()))
    optimizer = make_optimizer(loaded.parts, recipe.training, CPU)
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    loaded.model.train()
    loaded.parts.vision_tower.eval()
    torch.manual_seed(4)  # of dropout
    for step in range(2):
        for first in (4 * step, 4 * step + 2):
            batch = data.collator([data.train[i % 8] for i in (first, first + 1)])
            loss = micro_batch_loss(
                loaded.model,
                loaded.parts,
                supervision,
                batch,
                lambdas=(1.0, 1.0),
                num_items_in_batch=12,
                samples_with_image=4,
            ).loss
            yield loss.detach()
            loss.backward()
        yield from (p.grad.clone() for p in trained if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    yield from trained


CASES: dict[str, dict[str, Any]] = {
    "sdpa": {},
    "eager": {"model.attention": "eager"},
    "target with a graph": {"supervision.detach": False},
    "eager, target with a graph": {"model.attention": "eager", "supervision.detach": False},
    "final norm on every layer": {"supervision.target_norm": "final"},
    "bfloat16": {"model.dtype": "bfloat16"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_same_bits(folder: Path, changes: dict[str, Any], to_host: list[Any]) -> None:
    """On the CPU: on a GPU, attention and scatter kernels may differ from run to run by themselves."""
    changes = {"lora.dropout": 0.3, **changes}
    plain = list(two_steps(tiny_recipe(folder, changes)))
    assert not to_host
    moved = list(two_steps(tiny_recipe(folder, {**changes, **OFFLOAD, **TOWER})))
    # Each layer's input [B, T, D] of each of four micro-batches, and nothing else.
    assert len(to_host) == 4 * LAYERS and {(shape[0], len(shape), shape[2]) for shape in to_host} == {(2, 3, 64)}
    assert len(plain) == len(moved) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    assert not torch.equal(plain[0], plain[1])


def test_what_comes_back_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoiled on the host, it spoils the gradients: the test above could fail."""
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    plain = list(two_steps(tiny_recipe(folder)))
    really = ActivationOffload.to_host
    monkeypatch.setattr(ActivationOffload, "to_host", lambda self, tensor: really(self, tensor).mul_(1.01))
    spoiled = list(two_steps(tiny_recipe(folder, OFFLOAD)))
    assert torch.equal(plain[0], spoiled[0])  # the first forward
    assert not all(torch.equal(a, b) for a, b in zip(plain, spoiled, strict=True))


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


def test_the_audit_sees_the_same_parts(folder: Path) -> None:
    tables = []
    for changes in ({}, TOWER):
        recipe = tiny_recipe(folder, changes)
        loaded = load_for_training(recipe, CPU, load_frontend(recipe.model), lambda text: None)
        tables.append(audit(loaded.parts))
    assert tables[0] == tables[1]


# --- a run --------------------------------------------------------------------------------------------------------


def test_a_run_with_both_is_the_same_run(folder: Path, to_host: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer, evaluation, uniform weights' extra forward, checkpoints, resume, and the tools afterwards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    changes = {
        "training.device": "auto",  # with `cpu` both keys are refused when the recipe is read
        "lora.dropout": 0.3,
        "data.eval": data,
        "training.eval_every": 2,
        "training.save_every": 2,
        "training.keep": 9,
        "supervision.token_weights": "uniform",
        "supervision.refinement_batches": 1,
    }
    plain = train(tiny_recipe(folder, {**changes, "name": "plain"}), console=quiet())
    monkeypatch.setattr("basic_lite.run.check_arguments", lambda recipe, device: None)  # it refuses a CPU
    recipe = tiny_recipe(folder, {**changes, **OFFLOAD, **TOWER, "name": "moved"})
    moved = train(recipe, console=quiet())
    assert len(to_host) == 4 * 2 * LAYERS

    shutil.rmtree(moved.folder / "final")
    shutil.rmtree(moved.folder / "checkpoint-4")
    # A run may go on with other values of both keys.
    train(tiny_recipe(folder, {**changes, **TOWER, "name": "moved"}), resume=True, console=quiet())
    assert len(to_host) == 4 * 2 * LAYERS
    for name in ("projector.safetensors", "adapter/adapter_model.safetensors"):
        a, b = load_file(plain.folder / "final" / name), load_file(moved.folder / "final" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    terms = [[{k: line[k] for k in ("lm", "das", "sds")} for line in steps_of(r.folder)] for r in (plain, moved)]
    assert terms[0] == terms[1]
    losses = [[line["eval_loss"] for line in log_of(r.folder) if "eval_loss" in line] for r in (plain, moved)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    parts = [json.loads((r.folder / "parts.json").read_text()) for r in (plain, moved)]
    assert parts[0] == parts[1]
    answers = [
        evaluate_run(r.folder, folder / "data.json", image_dir=folder / "images", limit=2, console=quiet()).predictions
        for r in (plain, moved)
    ]
    assert answers[0] == answers[1]


# --- refusals -----------------------------------------------------------------------------------------------------

RECIPE = "name: r\nstage: 2\nmodel: {vision: v, llm: l}\nlora: {enabled: true}\ndata: {train: {path: d.json}}\n"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["training.offload_activations=true", "training.gradient_checkpointing=false"],
            "set training.gradient_checkpointing: true",
        ),
        (["training.offload_activations=true", "training.device=cpu"], "set training.offload_activations: false"),
        (["model.tower_on_host=true", "training.device=cpu"], "set model.tower_on_host: false"),
    ],
)
def test_impossible_combinations(tmp_path: Path, overrides: list[str], says: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as refused:
        load_recipe(tmp_path / "r.yaml", overrides)
    assert says in str(refused.value)
    load_recipe(tmp_path / "r.yaml", overrides[:1])


@pytest.mark.parametrize("changes", [OFFLOAD, TOWER], ids=str)
def test_a_machine_without_a_gpu_refuses(folder: Path, changes: dict[str, Any]) -> None:
    recipe = tiny_recipe(folder, {**changes, "training.device": "auto"})
    with pytest.raises(UserError, match=rf"{next(iter(changes))} is true, .* the run is on the cpu"):
        check_arguments(recipe, CPU)
    check_arguments(recipe, None)  # a dry run for another machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned")
def test_memory_that_can_not_be_pinned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", full)
    with pytest.raises(MemoryError, match=r"2\.0 MiB of pinned host memory could not be had"):
        empty_host(torch.ones(2**19), pinned=True)
    with pytest.raises(UserError, match=r"set model\.tower_on_host to false"):
        RestOnHost(torch.nn.Linear(2, 2).requires_grad_(False), CPU)
