"""LoRA's scale and sum inside its last product: as right as PEFT's own layers, and PEFT's files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from basic_lite.data.prepare import prepare_data
from basic_lite.model.adapt import ADAPTER, adapt, leave_casts_to_autocast, lora_parameters
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.lora import AddmmLinear, add_in_product
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import autocast_of, make_step
from basic_lite.training.bundle import PEFT_PREFIX, write_bundle
from basic_lite.training.step import StepCounts, TrainStep
from tests.support.kernels import MadeShapes, assert_as_good_as, relative
from tests.support.runs import whole_recipe, write_data
from tests.support.steps import CPU, load_tiny

B, T, K, N, RANK = 2, 20, 64, 128, 8
EPSILON = {torch.float32: 1e-6, torch.bfloat16: 1e-3}


def base_layer(dtype: torch.dtype, *, four_bit: bool) -> nn.Linear:
    torch.manual_seed(0)
    layer: nn.Linear = nn.Linear(K, N, dtype=dtype)
    if four_bit:
        quantised = Linear4bit(K, N, bias=True, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
        quantised.load_state_dict(layer.state_dict())
        layer = quantised.to(dtype).to(CPU)
    return layer.requires_grad_(False)


def lora_layer(kind: type[LoraLinear], base: nn.Linear, dtype: torch.dtype, dropout: float) -> LoraLinear:
    layer = kind(base, ADAPTER, LoraConfig(r=RANK, lora_alpha=24, lora_dropout=dropout), r=RANK, lora_alpha=24)
    torch.manual_seed(1)
    for part in (layer.lora_A, layer.lora_B):
        part.to(dtype)
        part[ADAPTER].weight.data.copy_(torch.randn(part[ADAPTER].weight.shape) / 4)
    return layer


def output_and_gradients(layer: LoraLinear, x: Tensor, upstream: Tensor, *, autocast: bool) -> list[Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # of dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.backward(upstream.to(out.dtype))
    return [out.detach(), x.grad, layer.lora_A[ADAPTER].weight.grad, layer.lora_B[ADAPTER].weight.grad]  # type: ignore[list-item]


def truth(layer: LoraLinear, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The same in float64, without PEFT and without dropout."""
    base = layer.base_layer
    weight = base.weight
    if isinstance(base, Linear4bit):
        weight = dequantize_4bit(weight.data, weight.quant_state)
    x, a, b = (
        t.detach().double().requires_grad_() for t in (x, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
    )
    out = x @ weight.double().T + base.bias.double() + layer.scaling[ADAPTER] * (x @ a.T) @ b.T
    return [out.detach(), *torch.autograd.grad(out, (x, a, b), upstream.double())]


@pytest.mark.parametrize("four_bit", [True, False], ids=["nf4", "plain"])
@pytest.mark.parametrize(
    "dtype, lora, autocast",
    [
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, True),
    ],
    ids=["float32", "bf16", "bf16, float32 adapters, autocast", "bf16, bf16 adapters, autocast"],
)
def test_as_right_as_pefts_layer(dtype: torch.dtype, lora: torch.dtype, autocast: bool, four_bit: bool) -> None:
    base = base_layer(dtype, four_bit=four_bit)
    ours, peft = (lora_layer(kind, base, lora, 0.0) for kind in (AddmmLinear, LoraLinear))
    for layer in (ours, peft):
        layer.cast_input_dtype_enabled = not autocast  # as in training
    torch.manual_seed(3)
    x, upstream = torch.randn(B, T, K, dtype=dtype), torch.randn(B, T, N, dtype=dtype)
    mine, theirs = (output_and_gradients(layer, x, upstream, autocast=autocast) for layer in (ours, peft))
    for a, b, exact in zip(mine, theirs, truth(ours, x, upstream), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert relative(a, exact) < 40 * EPSILON[dtype]
        assert_as_good_as(a, b, exact, EPSILON[dtype])
    if dtype == torch.bfloat16:  # one rounding, where PEFT has three
        assert relative(mine[0], truth(ours, x, upstream)[0]) < 0.9 * relative(theirs[0], truth(ours, x, upstream)[0])


def test_dropout_draws_what_pefts_layer_draws() -> None:
    base = base_layer(torch.float32, four_bit=False)
    ours, peft = (lora_layer(kind, base, torch.float32, 0.5) for kind in (AddmmLinear, LoraLinear))
    x, upstream = torch.randn(B, T, K), torch.randn(B, T, N)
    mine, theirs = (output_and_gradients(layer, x, upstream, autocast=False) for layer in (ours, peft))
    assert relative(mine[0], truth(ours, x, upstream)[0]) > 0.1
    for a, b in zip(mine, theirs, strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("way", ["adapters off", "merged", "other types"])
def test_pefts_own_way_where_it_must_be(way: str) -> None:
    dtype = torch.bfloat16 if way == "other types" else torch.float32
    base = base_layer(dtype, four_bit=False)
    ours, peft = (lora_layer(kind, base, torch.float32, 0.0) for kind in (AddmmLinear, LoraLinear))
    x = torch.randn(B, T, K, dtype=dtype)
    found = []
    for layer in (ours, peft):
        layer.enable_adapters(way != "adapters off")
        if way == "merged":
            layer.merge()
        found.append(layer(x))
        if way == "merged":
            layer.unmerge()
    assert found[0].dtype == dtype and torch.equal(*found)


def test_an_output_is_made_once() -> None:
    base, x = base_layer(torch.float32, four_bit=False), torch.randn(B, T, K)
    made = []
    for kind in (AddmmLinear, LoraLinear):
        layer = lora_layer(kind, base, torch.float32, 0.0)
        with MadeShapes() as seen:
            layer(x)
        made.append(sum(count for shape, count in seen.shapes.items() if shape in ((B, T, N), (B * T, N))))
    assert made[0] < made[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    write_data(root, 8)
    whole_recipe(root)
    return root


def on_a_card(recipe: Recipe, frontend: object) -> Loaded:
    """The recipe's model on the CPU, with the LoRA layers of a card."""
    torch.manual_seed(3)
    loaded = load_base(recipe, CPU, frontend)  # type: ignore[arg-type]
    adapt(loaded.parts, recipe, on_card=True)
    return loaded


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_steps_and_files_are_those_of_pefts_layers(folder: Path, tmp_path: Path, quantization: str) -> None:
    """On a CPU the layers are PEFT's, so a run has the bits that it had; a card's differ from them by rounding."""
    recipe = whole_recipe(folder, {"quantization.mode": quantization, "lora.dropout": 0.3})
    usual = load_tiny(recipe)
    ours = on_a_card(recipe, usual.frontend)
    kinds = [{type(m) for m in x.parts.layers.modules() if isinstance(m, LoraLinear)} for x in (usual, ours)]
    assert kinds == [{LoraLinear}, {AddmmLinear}]
    found = [gradients(recipe, x, make_step(recipe, x, None, CPU)) for x in (ours, usual)]
    for a, b in zip(*found, strict=True):
        assert relative(a, b) < 1e-4

    for name, loaded in (("usual", usual), ("ours", ours)):
        (tmp_path / name).mkdir()
        write_bundle(tmp_path / name, loaded.parts, loaded.tokenizer, recipe, {"step": 2})
    configs = [(tmp_path / name / "adapter" / "adapter_config.json").read_text() for name in ("usual", "ours")]
    assert configs[0] == configs[1]
    plain = load_base(recipe, CPU, usual.frontend)
    opened = PeftModel.from_pretrained(plain.model, tmp_path / "ours" / "adapter")
    states = [get_peft_model_state_dict(model, adapter_name=ADAPTER) for model in (ours.model, opened)]
    assert len(states[0]) == 2 * 7 * len(ours.parts.layers)
    assert {PEFT_PREFIX + name for name in states[0]} == set(states[1])
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(opened.eval()(input_ids=ids).logits, ours.model.eval()(input_ids=ids).logits)


def test_the_configuration_keeps_nothing() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    before = config.to_dict()
    assert add_in_product(config).to_dict() == before


@pytest.mark.parametrize("card", [False, True], ids=["cpu", "card"])
def test_autocast_without_a_cache_gives_the_same_bits(folder: Path, card: bool) -> None:
    """Its copies of the adapters are used once, so keeping them gains nothing."""
    recipe = whole_recipe(folder, {"model.dtype": "bfloat16", "training.autocast": "bfloat16", "lora.dropout": 0.3})
    found = []
    for cached in (True, False):
        loaded = load_tiny(recipe)
        if card:
            loaded = on_a_card(recipe, loaded.frontend)
        context = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=cached)
        found.append(gradients(recipe, loaded, TrainStep(loaded.parts, None, device=CPU, autocast=context)))
    ours = load_tiny(recipe)
    if not card:
        found.append(gradients(recipe, ours, make_step(recipe, ours, None, CPU)))
    for other in found[1:]:
        assert len(other) > 20 and all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    with autocast_of(recipe, CPU)():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def gradients(recipe: Recipe, loaded: Loaded, step: TrainStep) -> list[Tensor]:
    """The loss of one micro-batch, and all gradients."""
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    batch = data.collator([data.train[0], data.train[1]])
    for parameter in lora_parameters(loaded.model).values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(5)).mul_(0.05)
    leave_casts_to_autocast(loaded.parts)
    torch.manual_seed(4)
    loss = step.loss(batch, StepCounts(6, 2, 0), (0.0, 0.0)).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in step.trainable if p.grad is not None)]


def test_switches_of_other_packages_have_the_names_that_are_set() -> None:
    """A release that renames one would take more memory, or repack weights, and no result would be another."""
    layer = LoraLinear(nn.Linear(4, 4), "default", config=LoraConfig(r=2), r=2)
    assert layer.cast_input_dtype_enabled is True
    assert hasattr(Linear4bit(4, 4), "support_avx512bf16_for_cpu")
