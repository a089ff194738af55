"""The rehearsal against a really measured step, against itself without shortcuts, and against what it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import clip_config, write_llm
from helpers_run import quiet, tiny_recipe
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionModel

from basic_lite.console import speaker
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.audit import audit
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal import Shape, Stage, Target, rehearse
from basic_lite.rehearsal.batch import longest_batch
from basic_lite.rehearsal.build import NF4, fake_model
from basic_lite.rehearsal.ledger import Ledger
from basic_lite.rehearsal.optimizer import optimizer_state
from basic_lite.run import load_for_training, supervise
from basic_lite.schema import Recipe
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.step import MicroBatch, micro_batch_loss
from bench import naive_step
from bench.shapes import shape_recipe, write_image_processor

CPU = torch.device("cpu")
MIB = 2**20
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a model with a few million weights and 64 tokens an image."""
    root = tmp_path_factory.mktemp("rehearsal")
    write_llm(root / "llm", vocab_size=4096, num_key_value_heads=4, **SIZES)
    torch.manual_seed(0)
    CLIPVisionModel(clip_config(hidden_size=64, image_size=64)).save_pretrained(root / "vision")
    write_image_processor(root / "vision", size=64)
    return root


def recipe_of(folder: Path, changes: dict[str, Any]) -> Recipe:
    common = {"data.max_length": 256, "lora.dropout": 0.05, "training.micro_batch": 4, "training.global_batch": 8}
    return tiny_recipe(folder, {**common, **changes})


def tensor_bytes(tensors: Any) -> int:
    """Bytes of distinct storages."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(seen.values())


def profiled_peak(step: Callable[[], None]) -> int:
    """Most bytes that ``step`` holds at once beyond what was there before, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measured_peak(recipe: Recipe, step: Callable[..., MicroBatch] = micro_batch_loss) -> int:
    """Peak bytes of the second micro-batch of the second step of a real training on the CPU."""
    frontend = load_frontend(recipe.model)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    supervision = supervise(recipe, loaded, speaker(quiet()))
    autocast = recipe.training.autocast == "bfloat16"
    if autocast:
        leave_casts_to_autocast(loaded.parts)
    optimizer = make_optimizer(loaded.parts, recipe.training, CPU)
    batch = longest_batch(frontend, Shape.of(recipe))
    batch["pixel_values"] = torch.randn(recipe.training.micro_batch, 3, 64, 64)
    loaded.model.train()
    loaded.parts.vision_tower.eval()

    def forward(**kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loaded.model(**kwargs)

    def micro_batch() -> None:
        step(
            forward,
            loaded.parts,
            supervision,
            batch,
            lambdas=(1.0, 0.01) if supervision is not None else (0.0, 0.0),
            num_items_in_batch=100,
            samples_with_image=8,
            detailed=True,
        ).loss.backward()

    micro_batch()
    optimizer.step()
    held = [*loaded.model.parameters(), *loaded.model.buffers(), *batch.values()]
    held += [p.grad for p in loaded.model.parameters()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    statistics = sum(part.bytes for part in audit(loaded.parts)) - tensor_bytes(loaded.model.parameters())
    return tensor_bytes(held) + max(statistics, 0) + profiled_peak(micro_batch)


CASES: dict[str, dict[str, Any]] = {
    "stage 2, NF4, checkpointing": {},
    "stage 2, bf16 autocast": {"model.dtype": "bfloat16", "training.autocast": "bfloat16", "lora.rank": 32},
    "stage 2, no checkpointing": {"training.gradient_checkpointing": False, "quantization.double": False},
    "stage 2, unquantised, 8-bit optimizer": {"quantization.mode": "none", "training.optimizer": "adamw_8bit"},
    "stage 1": {"stage": 1, "lora.enabled": False, "lora.dropout": 0.0},
    "BASIC off": {"supervision.enabled": False},
    "eager attention": {"model.attention": "eager"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_rehearsed_peak_is_the_measured_one(folder: Path, changes: dict[str, Any]) -> None:
    recipe = recipe_of(folder, changes)
    rehearsed = rehearse(recipe, load_frontend(recipe.model), Target.this_cpu(recipe))
    measured = measured_peak(recipe)
    print(f"rehearsed {rehearsed.peak_bytes / MIB:.1f} MiB, measured {measured / MIB:.1f} MiB", rehearsed.by_part)
    assert sum(rehearsed.by_part.values()) == rehearsed.peak_bytes
    # Issue: within 10 %. It is within 0.5 %, and a drift should show.
    assert rehearsed.peak_bytes == pytest.approx(measured, rel=0.02)


def test_the_naive_way_is_rehearsed_as_it_is_measured(folder: Path) -> None:
    """Another step than the project's own, whose memory the short cuts know nothing of: attention maps, full logits."""
    recipe = recipe_of(folder, {"model.attention": "eager"})
    frontend, target = load_frontend(recipe.model), Target.this_cpu(recipe)
    rehearsed = Stage(recipe, frontend, target, in_full=True).rehearse(step=naive_step.micro_batch_loss)
    assert rehearsed.peak_bytes == pytest.approx(measured_peak(recipe, naive_step.micro_batch_loss), rel=0.02)
    ours = rehearse(recipe, frontend, target)
    maps = 4 * 6 * 4 * 8 * 256**2  # float32, L · B · H · T²
    assert rehearsed.forward_peak_bytes - ours.forward_peak_bytes > maps
    with pytest.raises(ValueError, match="in_full=True"):
        Stage(recipe, frontend, target).rehearse(step=naive_step.micro_batch_loss)


# GiB that the step needs, with the allowance, at most; model, micro-batch, tokens, LoRA rank
TARGETS = [
    ("7b", 1, 1024, 16, 7.0),
    ("7b", 2, 2048, 32, 8.2),
    ("7b", 24, 1024, 128, 22.5),
    ("13b", 4, 1024, 64, 14.5),
    ("34b", 1, 1024, 16, 22.9),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.mark.parametrize("size, micro_batch, tokens, rank, most_gib", TARGETS)
def test_memory_targets(shapes: Path, size: str, micro_batch: int, tokens: int, rank: int, most_gib: float) -> None:
    recipe = shape_recipe(shapes, size, micro_batch=micro_batch, max_length=tokens, rank=rank)
    rehearsed = rehearse(recipe, load_frontend(recipe.model), Target.card(recipe))
    print(f"{rehearsed.needed_bytes / 2**30:.2f} GiB", rehearsed.by_part)
    assert rehearsed.needed_bytes <= most_gib * 2**30
    assert rehearsed.by_part["BASIC"] <= 0.01 * rehearsed.needed_bytes


def test_basic_adds_little_at_eight_images(shapes: Path) -> None:
    recipe = shape_recipe(shapes, "7b", micro_batch=8, max_length=1024, rank=128)
    frontend, target = load_frontend(recipe.model), Target.card(recipe)
    on, off = (rehearse(recipe, frontend, target, basic=basic) for basic in (True, False))
    added = on.peak_bytes - off.peak_bytes
    assert added == pytest.approx(on.by_part["BASIC"], rel=0.05)
    assert added <= min(150 * MIB, 0.01 * on.peak_bytes)


@pytest.mark.parametrize("changes", [{}, {"training.global_batch": 4}], ids=["accumulating", "not accumulating"])
@pytest.mark.parametrize("images", [1, 9])
def test_repeats_change_nothing(folder: Path, changes: dict[str, Any], images: int) -> None:
    """Nine images of 64 tokens in four samples are more visual tokens than BASIC's operations are shortened to."""
    recipe = recipe_of(folder, {"data.max_length": 700, **changes})
    frontend, target = load_frontend(recipe.model), Target.card(recipe)
    shape = Shape(4, 700, images, recipe.training.global_batch // 4)
    short, full = (Stage(recipe, frontend, target, in_full=in_full).rehearse(shape) for in_full in (False, True))
    assert short.peak_bytes == pytest.approx(full.peak_bytes, rel=1e-3)
    assert short.forward_peak_bytes == pytest.approx(full.forward_peak_bytes, rel=1e-3)
    assert short.by_part == pytest.approx(full.by_part, rel=0.01, abs=64 * 1024)


def test_a_stage_can_be_rehearsed_again(folder: Path) -> None:
    recipe = recipe_of(folder, {})
    stage = Stage(recipe, load_frontend(recipe.model), Target.card(recipe))
    first, larger, again = (stage.rehearse(Shape(b, 256, 1, 8 // b)) for b in (4, 8, 4))
    assert (first.shape, first.peak_bytes, first.by_part) == (again.shape, again.peak_bytes, again.by_part)
    assert larger.peak_bytes > first.peak_bytes


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_optimizer_state_is_what_the_optimizer_holds(folder: Path, optimizer: str) -> None:
    recipe = recipe_of(folder, {"training.optimizer": optimizer, "lora.rank": 32})
    frontend = load_frontend(recipe.model)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    real = make_optimizer(loaded.parts, recipe.training, CPU)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    real.step()
    values = [value for state in real.state.values() for value in state.values()]
    held = tensor_bytes(v for v in values if isinstance(v, Tensor) and v.numel() > 1)
    ledger = Ledger()
    parts = fake_model(recipe, frontend, Target.this_cpu(recipe), ledger).parts
    state = optimizer_state(parts, recipe.training, ledger, "optimizer")
    assert sum(t.numel() * t.element_size() for t in state.tensors) == held
    assert state.pageable_bytes == 0


def test_nf4_weights_have_the_bytes_of_bitsandbytes(folder: Path) -> None:
    for double in (True, False):
        recipe = recipe_of(folder, {"quantization.double": double})
        frontend = load_frontend(recipe.model)
        loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
        real = sum(part.bytes for part in audit(loaded.parts) if part.part == "LLM linears")
        ledger = Ledger()
        model = fake_model(recipe, frontend, Target.this_cpu(recipe), ledger).model
        layers = sum(type(m).__name__ == "NF4Linear" for m in model.modules())
        # bitsandbytes adds a line of text to each layer's statistics; the books round each tensor up to a block.
        assert ledger.by_tag[NF4] == pytest.approx(real, abs=6 * 512 * layers)


def test_no_weight_is_allocated(folder: Path) -> None:
    recipe = recipe_of(folder, {})
    ledger = Ledger()
    model = fake_model(recipe, load_frontend(recipe.model), Target.card(recipe), ledger).model
    assert all(isinstance(p.data, FakeTensor) for p in model.parameters())
    assert {p.dtype for p in model.model.multi_modal_projector.parameters()} == {torch.float32}


def test_the_ledger_counts_storages_once_and_for_as_long_as_they_live() -> None:
    ledger = Ledger()
    with ledger.fake_mode:
        source = torch.empty(1024, dtype=torch.float32)
    ledger.enter(source, "source")
    with ledger, ledger.scope("copies"):
        view = source[512:]
        copy = view + 1
        assert ledger.live == 4096 + 2048
        del copy
        assert ledger.live == 4096
        again = source * 2
    assert (ledger.peak, ledger.at_peak) == (8192, {"source": 4096, "copies": 4096})
    assert again.shape == (1024,)


def test_masks_of_real_values_decide_sizes() -> None:
    ledger = Ledger()
    mask = torch.tensor([True, False, True])
    with ledger.fake_mode:
        rows = torch.empty(3, 8)
    with ledger:
        assert rows[mask].shape == (2, 8)
        assert rows.masked_select(mask.unsqueeze(1)).shape == (16,)
        assert int(mask.sum()) == 2
