"""v, ṽ_h and the text's attention of every family against a naive reading of the model's own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipConfig, LlamaConfig

from basic_lite.errors import UserError
from basic_lite.model.families import FAMILIES, family_of
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Supervision
from basic_lite.supervision.health import HealthMeter
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.premise import nearest_by_place
from basic_lite.supervision.separators import decoder_input, without_separators
from basic_lite.supervision.text_attention import TextAttention
from basic_lite_kernels.operations import EAGER
from tests.support.vlms import AFTER, IMAGE, LAYERS, TINY, WORDS, Tiny, naive_states, pictures, placeholders

torch.set_num_threads(1)
EACH = pytest.mark.parametrize("name", list(TINY))


def opened(tiny: Tiny) -> tuple[Any, Parts]:
    model = tiny.model()
    return model, family_of(model.config, "the model").parts(model)


def test_every_family_is_tried() -> None:
    assert set(TINY) == {family.name for family in FAMILIES}


@EACH
def test_v_and_all_layers_are_the_models_own(name: str) -> None:
    tiny = TINY[name]
    model, parts = opened(tiny)
    batch = tiny.batch(pictures(tiny, 2))
    settings = SupervisionSection(token_weights=0.1, layers=3)
    supervision = Supervision(parts, settings, vocabulary_ids=torch.arange(WORDS), operations=EAGER)
    layout = find_layout(batch, parts.image_token_id, "all")
    meter = HealthMeter(LAYERS + 2, 1.0)
    with torch.no_grad():
        _, (rows,) = nearest_by_place(supervision, batch, layout, meter, each_layer=True)  # [P, M, D]
    naive = [state[placeholders(batch)] for state in naive_states(model, batch)]
    last = parts.norm(rows[LAYERS]).detach()
    torch.testing.assert_close(torch.stack([*rows[:LAYERS], last]), torch.stack(naive), atol=1e-5, rtol=0)
    target = (naive[1] + 4 * naive[2] + 9 * naive[3]) / 14
    torch.testing.assert_close(rows[-1], target, atol=1e-5, rtol=0)


@EACH
def test_v_follows_the_placeholders(name: str) -> None:
    """Pictures change places, and so do their rows; a changed cell of a picture changes the row of its own place."""
    tiny = TINY[name]
    _, parts = opened(tiny)
    two = pictures(tiny, 2)
    batch = tiny.batch(two)
    before, after = (decoder_input(parts, one)[0, placeholders(batch)] for one in (batch, tiny.batch(two.flip(0))))
    torch.testing.assert_close(before.split(tiny.count), after.split(tiny.count)[::-1], atol=1e-5, rtol=0)
    assert not torch.allclose(*before.split(tiny.count))

    size = tiny.side // tiny.cells
    for row, column in [(0, 1), (1, 0), (tiny.cells - 1, tiny.cells - 2)]:
        changed = two.clone()
        changed[1, :, row * size : (row + 1) * size, column * size : (column + 1) * size] += 3
        moved = decoder_input(parts, tiny.batch(changed))[0, placeholders(batch)] - before
        grid = moved[tiny.count + tiny.first :].norm(dim=1)
        assert grid.argmax() == row * (tiny.cells + tiny.gap) + column
        assert moved[: tiny.count].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "LLaVA-OneVision"])
def test_rows_that_end_lines_are_no_patches(name: str) -> None:
    tiny = TINY[name]
    model, parts = opened(tiny)
    batch = tiny.batch(pictures(tiny, 2))
    separator = family_of(model.config, name).separator_row(model)
    layout = find_layout(without_separators(parts, batch, separator), IMAGE, "all")
    one = [n for n in range(tiny.count) if n < tiny.first or (n - tiny.first + 1) % (tiny.cells + tiny.gap)]
    places = placeholders(batch)[[*one, *(tiny.count + n for n in one)]]
    assert layout.positions.tolist() == places.tolist() and int(layout.patches) == 2 * (4 + 16)


def naive_mass(attention: Tensor, batch: dict[str, Tensor], rows: list[int]) -> float:
    """Σ_i a_i of a layer's map [1, H, T, T]."""
    return float(attention[0].detach().mean(dim=0)[rows][:, placeholders(batch)].sum(dim=1).mean())


@EACH
def test_text_attention(name: str) -> None:
    tiny = TINY[name]
    model, parts = opened(tiny)
    batch = tiny.batch(pictures(tiny, 2))
    prefix = family_of(model.config, name).prefix
    meter = TextAttention(parts, EAGER, "response" if prefix else "all")
    ids = batch["input_ids"][0].tolist()
    rows = [n for n, i in enumerate(ids) if i != IMAGE and n > ids.index(IMAGE)]
    labels = torch.tensor([[-100] * (len(ids) - len(AFTER)) + AFTER])
    rows = rows[-len(AFTER) :] if prefix else rows
    with meter.watching(), torch.no_grad():
        for one in meter.over([{**batch, "labels": labels}]):
            model.model(**{key: one[key] for key in one if key != "labels"}, use_cache=False)
    kinds = getattr(parts.language_model.config, "layer_types", None) or ["full_attention"] * LAYERS
    softmax = [kind in ("full_attention", "sliding_attention") for kind in kinds]
    assert [mass is not None for mass in meter.masses()] == softmax

    model.set_attn_implementation("eager")
    attentions = model(**batch, use_cache=False, output_attentions=True).attentions
    naive = [naive_mass(attention, batch, rows) for attention in attentions if attention is not None]
    assert [mass for mass in meter.masses() if mass is not None] == pytest.approx(naive, abs=1e-5)


def test_an_unknown_model_is_refused_with_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"a blip model: its configuration has vision_config, text_config.*LFM2-VL"):
        family_of(BlipConfig(), "x/blip")
    with pytest.raises(UserError, match="llama model without a vision part"):
        family_of(LlamaConfig(), "x/llama")


def test_a_family_that_is_built_otherwise_is_refused() -> None:
    model = TINY["InternVL"].model()
    del model.model.multi_modal_projector
    with pytest.raises(UserError, match=r"InternVLForConditionalGeneration.*no model\.multi_modal_projector"):
        family_of(model.config, "x").parts(model)
