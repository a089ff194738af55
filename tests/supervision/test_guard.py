"""The gradient guard: against the book in float64, its edges, its memory, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.guard import Guard
from basic_lite.supervision.layout import Layout, find_layout
from basic_lite.training.processes import ALONE
from basic_lite.training.step import StepCounts, TrainStep
from bench.measure import peak_bytes
from tests.support import supervision as kit

torch.set_num_threads(1)

TOLERANCE = 1e-5


def lm_gradients(exact: Any, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """v of each sample with an image [n, D], with its graph, and the LM loss's gradient there, one by one."""
    seen: dict[str, Tensor] = {}
    handle = exact.model.multi_modal_projector.register_forward_hook(lambda m, a, out: seen.update(v=out))
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    v, gradients, image = [], [], 0
    for row in range(len(batch["input_ids"])):
        kept = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][kept], batch["labels"][row][kept]
        images = int((ids == kit.IMAGE).sum()) // kit.PATCHES
        if not images:
            continue
        pixels = batch["pixel_values"][image : image + images].double()
        image += images
        logits = exact(input_ids=ids[None], pixel_values=pixels, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum") / labelled
        gradient = torch.autograd.grad(loss, seen["v"], retain_graph=True)[0]
        v.append(seen["v"].flatten(0, 1))
        gradients.append(gradient.flatten(0, 1))
    handle.remove()
    return v, gradients


def by_the_book(
    model: Any, batch: dict[str, Tensor], settings: SupervisionSection, rho: float, lambdas: tuple[float, float]
) -> tuple[list[Tensor], dict[str, float]]:
    """The guarded gradient of the projector, and what the guard logs, float64."""
    truth = kit.oracle(model, batch, settings)
    exact = copy.deepcopy(model).double().eval()
    kit.set_checkpointing(exact, False)
    exact.model.language_model.set_attn_implementation("eager")
    graphs, of_lm = lm_gradients(exact, batch)
    v = truth.v.clone().requires_grad_()
    das, sds = kit.exact_losses(exact, v, truth.target, truth.weights, settings)
    basic = torch.autograd.grad((lambdas[0] * das + lambdas[1] * sds) / len(graphs), v)[0]
    joined, logged = [], []
    for lm, own in zip(of_lm, basic.split([len(g) for g in graphs]), strict=True):
        g = own.clone()
        if lm.norm() == 0:
            joined.append(lm)
            logged.append((0.0, 0.0, 0.0))
            continue
        unit = lm / lm.norm()
        opposing = min(float((g * unit).sum()), 0.0)
        g = g - opposing * unit
        g = g * min(1.0, rho * float(lm.norm()) / float(g.norm()))
        joined.append(lm + g)
        logged.append((opposing**2 / own.norm() ** 2, own.norm() / lm.norm(), g.norm() / lm.norm()))
    parameters = list(exact.model.multi_modal_projector.parameters())
    gradient = torch.autograd.grad(torch.cat(graphs), parameters, torch.cat(joined))
    names = ("guard_conflict", "guard_ratio", "guard_ratio_after")
    means = torch.tensor([[float(x) for x in sample] for sample in logged]).mean(dim=0)
    return list(gradient), dict(zip(names, means.tolist(), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("rho", [0.1, 0.5, 1e6])
@pytest.mark.parametrize(("kind", "seed", "side"), [("llama", 6, "right"), ("gemma", 2, "left")])
def test_the_projectors_gradient_is_the_one_by_the_book(
    kind: str, seed: int, side: str, rho: float, checkpointing: bool
) -> None:
    """The batch has one image, two images, a text-only row and a sample with an image and no labelled token."""
    model = kit.tiny_llava(kind, seed=seed, cls=BasicLlavaForConditionalGeneration)
    batch = kit.tiny_batch(padding_side=side, seed=seed)
    lambdas = (50.0, 20.0)  # strong enough to be capped, and in some samples opposed
    supervision = kit.build(model, guard=rho)
    expected, logged = by_the_book(model, batch, supervision.settings, rho, lambdas)
    kit.set_checkpointing(model, checkpointing)
    with kit.capturing(supervision, batch) as captured:
        lm = model(**batch).loss
    losses = supervision.losses(captured)
    gradient = kit.projector_grad(model, lm + lambdas[0] * losses.das + lambdas[1] * losses.sds)
    assert kit.grad_error(gradient, expected) <= TOLERANCE
    assert losses.guard is not None
    assert {name: float(x) for name, x in losses.guard.metrics.items()} == pytest.approx(logged, rel=1e-4)
    assert logged["guard_conflict"] > 0.001 and (rho > 1 or logged["guard_ratio"] > 2 * logged["guard_ratio_after"])


@pytest.mark.parametrize("token_weights", ["attention", "uniform", 0.6])
def test_a_step_of_two_micro_batches_is_the_one_by_the_book(token_weights: Any) -> None:
    model = kit.tiny_llava(seed=6, cls=BasicLlavaForConditionalGeneration)
    batch, lambdas = kit.tiny_batch(seed=6), (50.0, 20.0)
    supervision = kit.build(model, guard=0.5, token_weights=token_weights)
    expected, logged = by_the_book(model, batch, supervision.settings, 0.5, lambdas)
    images = 3  # of the first two samples
    micro = [
        {name: x[cut] if name == "pixel_values" else x[rows] for name, x in batch.items()}
        for rows, cut in ((slice(0, 2), slice(0, images)), (slice(2, 4), slice(images, None)))
    ]
    step = TrainStep(supervision.parts, supervision, device=torch.device("cpu"))
    terms = step.gradients(micro, StepCounts.of(micro, kit.IMAGE), lambdas).values(ALONE)
    found = [parameter.grad for parameter in supervision.parts.projector.parameters() if parameter.grad is not None]
    assert kit.grad_error(found, expected) <= TOLERANCE
    assert {name: terms[name] for name in logged} == pytest.approx(logged, rel=1e-4)


def test_values_and_types_are_as_without_it() -> None:
    model, batch = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration), kit.tiny_batch()
    found = []
    for guard in (None, 0.5):
        supervision = kit.build(model, guard=guard)
        with kit.capturing(supervision, batch) as captured:
            lm = model(**batch).loss
        losses = supervision.losses(captured)
        assert captured.v is not None and captured.v.dtype == torch.float32
        found.append((lm, losses.das, losses.sds, captured.v))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def layout_of(*patches: int) -> Layout:
    """So many visual tokens a sample."""
    ids = torch.zeros(len(patches), max(patches) + 1, dtype=torch.int64)
    for row, count in enumerate(patches):
        ids[row, :count] = kit.IMAGE
    return find_layout({"input_ids": ids}, kit.IMAGE, "all")


def test_basic_nine_times_too_strong_and_opposed() -> None:
    """The first sample's BASIC is nine times the LM's at an angle of 120°, the second's agrees and is weak."""
    lm, across = torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)
    lm[:, 0, 0], across[:, 2, 5] = 2.0, 2.0
    basic = torch.stack([9 * (-0.5 * lm[0] + 0.75**0.5 * across[0]), 0.1 * lm[1] + 0.1 * across[1]])
    guard = Guard(0.5, layout_of(3, 3))
    joined = guard.join(lm.flatten(0, 1), basic.flatten(0, 1)).view(2, 3, 8)
    torch.testing.assert_close(joined[0], lm[0] + 0.5 * across[0])
    torch.testing.assert_close(joined[1], lm[1] + basic[1])
    after = joined - lm
    assert float((after[0] * lm[0]).sum()) == pytest.approx(0, abs=1e-5)
    alone = Guard(0.5, layout_of(3))
    alone.join(lm[0], basic[0])
    assert {name: float(x) for name, x in alone.metrics.items()} == pytest.approx(
        {"guard_conflict": 0.25, "guard_ratio": 9.0, "guard_ratio_after": 0.5}
    )
    assert float(guard.metrics["guard_conflict"]) == pytest.approx(0.125)


@pytest.mark.parametrize("basic", [-9.0, 0.0, 1e-30, 1e15])
def test_edges_stay_finite(basic: float) -> None:
    """Gradients that are exactly opposed, zero, tiny and huge; a sample without an LM gradient."""
    lm = torch.ones(5, 4)
    lm[3:] = 0
    guard = Guard(0.5, layout_of(3, 2))
    joined = guard.join(lm, basic * torch.ones(5, 4))
    assert not joined[3:].any(), "BASIC's part of a sample without an LM gradient is 0"
    expected = {-9.0: 1.0, 0.0: 1.0, 1e-30: 1.0, 1e15: 1.5}[basic]
    torch.testing.assert_close(joined[:3], torch.full((3, 4), expected))
    assert all(torch.isfinite(value) for value in guard.metrics.values())


def test_a_gradient_too_small_for_its_square_is_none() -> None:
    """Its norm is 0 in float32, though it isn't: nothing of BASIC goes on, and no measure becomes infinite."""
    lm = torch.full((3, 4), 1e-24)
    guard = Guard(0.5, layout_of(3))
    assert torch.equal(guard.join(lm, -torch.ones(3, 4)), lm)
    assert {name: float(value) for name, value in guard.metrics.items()} == dict.fromkeys(guard.metrics, 0.0)


def test_one_gradient_alone() -> None:
    guard, v = Guard(0.5, layout_of(3)), torch.ones(1, 3, 4, requires_grad=True)
    for_lm, for_basic = guard.split(v)
    assert torch.equal(torch.autograd.grad(for_lm.sum(), v, retain_graph=True)[0], torch.ones(1, 3, 4))
    assert guard.metrics == {}
    assert not torch.autograd.grad(for_basic.sum(), v)[0].any(), "nothing to weigh it against"


def test_memory_is_one_gradient() -> None:
    M, D, samples = 1024, 512, 8
    guard = Guard(0.5, layout_of(*[M // samples] * samples))
    lm, basic = torch.randn(M, D), torch.randn(M, D)
    guard.join(lm, basic)
    assert peak_bytes(lambda: guard.join(lm, basic), torch.device("cpu")) <= 4.5 * M * D


def test_a_second_call_of_the_projector_is_refused() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    projector = model.model.multi_modal_projector
    features = torch.randn(1, kit.PATCHES, 16)
    for guard in (None, 0.5):
        with kit.capturing(kit.build(model, guard=guard), batch):
            projector(features)
            if guard is not None:
                with pytest.raises(RuntimeError, match=r"called twice.*supervision\.guard=null"):
                    projector(features)
            else:
                projector(features)
