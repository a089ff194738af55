"""Plans of the target: what they refuse, how JSON keeps them, which dimensions are massive and which tokens sinks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.patch_weights import sinks
from basic_lite.supervision.target import TargetPlan, massive_dimensions
from tests.support import supervision as kit

torch.set_num_threads(1)


@pytest.mark.parametrize("massive", [None, ((), (3, 5))])
def test_a_plan_comes_back_from_json(massive: Any) -> None:
    plan = TargetPlan((0.25, 0.75), massive)
    assert TargetPlan.of(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


@pytest.mark.parametrize("weights, massive", [((), None), ((0.0, 0.0), None), ((1.0, -0.1), None), ((0.5, 0.5), ((),))])
def test_impossible_plans_are_refused(weights: tuple[float, ...], massive: Any) -> None:
    with pytest.raises(ValueError, match=r"weights are|massive dimensions for"):
        TargetPlan(weights, massive)


def energy(D: int, **of: float) -> Tensor:
    """Ordinary dimensions have up to six times as much as others; ``d507=.9``: a share of the whole for that one."""
    found = 1 + 5 * torch.rand(D, generator=torch.Generator().manual_seed(0))
    total = float(found.sum()) / (1 - sum(of.values()))
    for name, share in of.items():
        found[int(name[1:])] = share * total
    return found


@pytest.mark.parametrize("D", [32, 128, 576, 4096])
def test_ordinary_dimensions_are_not_massive(D: int) -> None:
    assert massive_dimensions(energy(D)) == ()


def test_massive_dimensions_are_found_behind_each_other() -> None:
    assert massive_dimensions(energy(576, d507=0.63)) == (507,)
    assert massive_dimensions(energy(576, d507=0.987, d247=0.005)) == (247, 507)
    assert massive_dimensions(energy(128, d3=0.1)) == (), "thirteen times the mean"
    assert massive_dimensions(energy(4096, d3=0.01)) == (), "forty times the mean, but little in all"
    assert massive_dimensions(energy(4096, d3=0.06)) == (3,)
    giants = {f"d{i}": 0.19 for i in range(5)}
    assert massive_dimensions(energy(128, **giants, d9=0.0077)) == tuple(range(5)), (
        "19.6 times the mean of the other 123, 20.4 of all"
    )
    assert massive_dimensions(energy(128, **giants, d9=0.0081)) == (*range(5), 9)


def test_nothing_is_no_dimension_and_a_few_dimensions_are_never_massive() -> None:
    assert massive_dimensions(torch.zeros(64)) == ()
    for count, found in ((16, 16), (17, 0)):
        assert len(massive_dimensions(energy(4096, **{f"d{i}": 0.056 for i in range(count)}))) == found
    assert len(massive_dimensions(0.5 ** torch.arange(64.0))) < 64 - 15


def test_sinks_are_told_sample_by_sample() -> None:
    """Each sample and layer by its own median; of a token in padding nothing is known, and it is no sink."""
    ids = torch.tensor([[kit.IMAGE, kit.IMAGE, 3, kit.IMAGE, kit.IMAGE], [3, 3, kit.IMAGE, kit.IMAGE, kit.IMAGE]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    layout = find_layout({"input_ids": ids, "attention_mask": mask}, kit.IMAGE, "all")
    first = torch.tensor([1.0, 2.0, 8.1, 9e9, 100.0, 100.0, 399.0])
    second = torch.tensor([9.0, 2.0, 2.1, 0.0, 100.0, 500.0, 100.0])
    assert sinks([first], layout).tolist() == [False, False, True, True, False, False, False]
    assert sinks([first, second], layout).tolist() == [True, False, True, True, False, True, False]


def test_the_median_of_an_even_number_is_the_lower_one() -> None:
    layout = find_layout({"input_ids": torch.tensor([[kit.IMAGE] * 4])}, kit.IMAGE, "all")
    assert sinks([torch.tensor([1.0, 3.0, 1.0, 5.0])], layout).tolist() == [False, False, False, True]


def test_sinks_are_told_by_whole_states() -> None:
    """Massive dimensions, which are left out of v̂, are where a sink is long."""
    model = kit.tiny_llava()
    supervision = kit.build(model, target_norm="layer", sinks="drop", layers=1)
    supervision.use(TargetPlan((1.0,), ((5, 9),)))
    seen: list[Tensor] = []
    model.model.language_model.layers[0].register_forward_hook(lambda m, a, out: seen.append(out))
    captured, _ = kit.run(supervision, kit.tiny_batch("image"))
    rows = seen[0].flatten(0, 1)[captured.layout.positions]
    torch.testing.assert_close(captured.norms[0], rows.norm(dim=1))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_use_changes_the_layers(padding_side: str) -> None:
    """As if the settings had named them; another plan and back leaves no trace."""
    batch = kit.tiny_batch(padding_side=padding_side)
    changed, named = kit.build(kit.tiny_llava()), kit.build(kit.tiny_llava(), layers=3, layer_weights="linear")
    first = changed.target_plan
    assert first == TargetPlan((0.2, 0.8)) and changed.layers == 2
    before = kit.run(changed, batch)[1]
    changed.use(named.target_plan)
    assert changed.layers == named.layers == 3
    for ours, other in ((kit.run(changed, batch)[1], kit.run(named, batch)[1]),):
        assert torch.equal(ours.das, other.das) and torch.equal(ours.sds, other.sds)
    changed.use(first)
    again = kit.run(changed, batch)[1]
    assert torch.equal(before.das, again.das) and torch.equal(before.sds, again.sds)


def test_use_refuses_layers_that_are_not_there() -> None:
    supervision = kit.build(kit.tiny_llava())
    with pytest.raises(ValueError, match="5 layers for an LLM that has 4"):
        supervision.use(TargetPlan((0.2,) * 5))
    assert supervision.layers == 2


def test_use_refuses_attention_that_cannot_be_read() -> None:
    model = kit.tiny_llava("qwen2")
    supervision = kit.build(model, layers=1)
    model.model.language_model.config.layer_types[1] = "chunked_attention"
    with pytest.raises(UserError, match="chunked_attention"):
        supervision.use(TargetPlan((0.5, 0.5)))
    assert supervision.layers == 1


@pytest.mark.parametrize("sinks", ["keep", "drop"])
def test_layers_without_weight_are_left_alone(sinks: str) -> None:
    """Nothing of them gets into v̂, and no hook is on them; with ``drop`` their norms are read."""
    model, batch = kit.tiny_llava(), kit.tiny_batch("image")
    supervision = kit.build(model, target_norm="layer", sinks=sinks)
    supervision.use(TargetPlan((0.0, 1.0, 0.0)))
    with kit.capturing(supervision, batch) as captured:
        hooks = [len(layer._forward_hooks) for layer in model.model.language_model.layers]
        model(**kit.inputs(batch), use_cache=False)
    assert hooks == ([1, 1, 1, 0] if sinks == "drop" else [0, 1, 0, 0])
    assert len(captured.norms) == (3 if sinks == "drop" else 0)
    assert captured.attended == 3, "a_i is a mean over the layers up to K"
    assert captured.target is not None
    rms = captured.target.square().mean(dim=1).sqrt()
    assert torch.allclose(rms, torch.ones_like(rms))
