"""Token maps against a naive float64 reading of the model's own outputs, and where each token lies."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.model.families import family_of
from basic_lite.model.families.views import View, first_tokens
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Supervision
from basic_lite.supervision.picture_maps import PictureMaps, as_jpeg, picture_maps
from basic_lite.supervision.separators import decoder_input, without_separators
from basic_lite.supervision.target import TargetPlan
from basic_lite.supervision.token_maps import TokenMaps, measure_maps, shown_layers
from basic_lite_kernels.operations import EAGER
from tests.support.models import tiny_tokenizer
from tests.support.supervision import (
    IMAGE,
    LAYERS,
    PATCHES,
    WithSinks,
    attention_shares,
    build,
    sink_tokens,
    tiny_batch,
    tiny_llava,
    word_ids,
)
from tests.support.vlms import TINY, WORDS, placeholders
from tests.support.vlms import pictures as random_pictures

torch.set_num_threads(1)
EACH = pytest.mark.parametrize("name", list(TINY))
WORD_IDS = [i for i in word_ids().tolist() if i != IMAGE]


def naive_cos(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def nearest(exact: Any, state: Tensor) -> int:
    table = exact.get_input_embeddings().weight
    return max(WORD_IDS, key=lambda word: naive_cos(state, table[word]))


@torch.no_grad()
def naive(model: Any, batch: dict[str, Tensor], layers: int, shown: list[int], massive: list[int]) -> dict[str, Any]:
    """One unpadded sample and token at a time, in float64, from output_hidden_states and eager output_attentions."""
    exact = copy.deepcopy(model).double().eval()
    exact.model.language_model.set_attn_implementation("eager")
    seen: dict[str, Tensor] = {}
    # hidden_states[L] is normed
    exact.model.language_model.norm.register_forward_pre_hook(lambda m, a: seen.update(last=a[0]))
    weights = [h * h for h in range(1, layers + 1)]
    found: dict[str, Any] = {"words": [], "cos": [], "attention": [], "sinks": []}
    image = 0
    for row in range(len(batch["input_ids"])):
        kept = batch["attention_mask"][row].bool()
        ids = batch["input_ids"][row][kept]
        where = [t for t in range(len(ids)) if ids[t] == IMAGE]
        if not where:
            continue
        pixels = batch["pixel_values"][image : image + len(where) // PATCHES].double()
        image += len(pixels)
        out = exact(
            input_ids=ids[None], pixel_values=pixels, output_hidden_states=True, output_attentions=True, use_cache=False
        )
        states = [*out.hidden_states[:LAYERS], seen["last"]]  # before layer 1: v at the placeholders
        queries = [j for j in range(where[0] + 1, len(ids)) if j not in where]
        found["attention"] += attention_shares(out.attentions[:layers], where, queries).tolist()
        found["sinks"] += sink_tokens(states[1 : layers + 1], where).bool().tolist()
        for t in where:
            v = states[0][0, t]
            target = sum(w * states[h][0, t] for h, w in enumerate(weights, start=1))
            read = [states[h][0, t].clone() for h in shown]
            for state in read:
                state[massive] = 0
            found["words"].append([nearest(exact, state) for state in (v, *read, target)])
            found["cos"].append([naive_cos(v, state[0, t]) for state in states[1:]] + [naive_cos(v, target)])
    return found


@pytest.mark.parametrize("massive", [[], [3, 4]])
def test_maps_equal_a_naive_reading(massive: list[int]) -> None:
    model = tiny_llava()
    model.model.multi_modal_projector = WithSinks(model.model.multi_modal_projector)
    batch, shown = tiny_batch(padding_side="left"), [1, 3]
    supervision = build(model, layers=2, token_weights=0.1)
    if massive:  # the layers' words leave them out; the target stays as it is, unless target_norm says otherwise
        plan = TargetPlan(supervision.target_plan.layer_weights, (tuple(massive),) * LAYERS)
        supervision.use(plan)
    maps = measure_maps(supervision, batch, shown, "all")
    truth = naive(model, batch, 2, shown, massive)
    assert maps.places == ["v", "h1", "h3", "target"] and maps.layers == maps.attended == 2
    assert maps.words.T.tolist() == truth["words"]
    torch.testing.assert_close(maps.cos.T.double(), torch.tensor(truth["cos"]).double(), atol=1e-5, rtol=0)
    assert maps.attention is not None
    torch.testing.assert_close(maps.attention.double(), torch.tensor(truth["attention"]).double(), atol=1e-6, rtol=1e-5)
    assert maps.sinks.tolist() == truth["sinks"] and 0 < sum(truth["sinks"]) < len(truth["sinks"])


def test_nothing_of_the_model_is_changed() -> None:
    model = tiny_llava().train()
    before = torch.get_rng_state()
    measure_maps(build(model, token_weights=0.1), tiny_batch("image"), [1], "all")
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.language_model.layers[0]._forward_hooks


def test_attention_that_is_no_softmax_is_left_out() -> None:
    model = tiny_llava()
    model.model.language_model.config.is_causal = False
    maps = measure_maps(build(model, token_weights=0.1), tiny_batch("image"), [1], "all")
    assert maps.attention is None and maps.attended == 0 and len(maps.sinks) == 2 * PATCHES


def test_some_layers_are_shown() -> None:
    assert [shown_layers(k) for k in (1, 2, 4, 12, 16)] == [[1], [1, 2], [1, 2, 3, 4], [1, 5, 8, 12], [1, 6, 11, 16]]


def opened(name: str) -> tuple[Any, Any, Any]:
    model = TINY[name].model()
    family = family_of(model.config, name)
    return model, family, family.parts(model)


@EACH
def test_a_changed_patch_of_a_view_changes_its_own_token(name: str) -> None:
    """The pixels of a view and its tokens are in one order, whatever the processor and the projector do."""
    tiny = TINY[name]
    model, family, parts = opened(name)
    two = random_pictures(tiny, 2)

    def read(pixels: Tensor) -> tuple[list[View], Tensor]:
        batch = tiny.batch(pixels)
        batch = without_separators(parts, batch, family.separator_row(model))
        visual = batch.get("visual", batch["input_ids"] == parts.image_token_id)[0]
        inputs = {key: batch[key] for key in batch if key != "visual"}
        return family.views(model.config, batch), decoder_input(parts, inputs)[0, visual]

    views, before = read(two)
    firsts = first_tokens(views, len(before))
    assert firsts is not None and sum(view.rows * view.columns for view in views) == len(before)
    size, seen = tiny.side // tiny.cells, 0
    for row, column in [(0, 1), (tiny.cells - 1, 0)]:
        changed = two.clone()
        changed[1, :, row * size : (row + 1) * size, column * size : (column + 1) * size] += 3
        views_after, after = read(changed)
        moved = (after - before).norm(dim=1)
        for first, view, other in zip(firsts, views, views_after, strict=True):
            # The view's own pixels, patch by patch.
            delta = (other.pixels - view.pixels).abs().sum(dim=0)
            height, width = delta.shape[0] // view.rows, delta.shape[1] // view.columns
            patches = delta.view(view.rows, height, view.columns, width).sum(dim=(1, 3)).flatten()
            own = moved[first : first + len(patches)]
            if patches.max() > 0:
                assert own.argmax() == patches.argmax()
                seen += 1
            else:
                assert own.max() < 1e-5
    assert seen >= 2


def test_pictures_change_places_and_their_maps_with_them() -> None:
    model = tiny_llava()
    supervision, batch = build(model, layers=2, token_weights=0.1), tiny_batch("image")
    swapped = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    first, second = (measure_maps(supervision, one, [1], "all").words[0].split(PATCHES) for one in (batch, swapped))
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])


def made(name: str, batch: dict[str, Tensor], views: list[View] | None, names: list[str]) -> list[PictureMaps]:
    parts = opened(name)[2]
    settings = SupervisionSection(token_weights=0.1, layers=3)
    supervision = Supervision(parts, settings, vocabulary_ids=torch.arange(WORDS), operations=EAGER)
    maps: TokenMaps = measure_maps(supervision, batch, [1], "all")
    tokenizer = tiny_tokenizer(("<image>",))
    words = {"names": names, "text_queries": "all"}
    return picture_maps(maps, views, supervision, tokenizer, NORMED, batch, **words)  # type: ignore[arg-type]


class NORMED:
    """What an image processor says of its pixels."""

    image_mean, image_std, do_normalize, do_rescale = [0.5] * 3, [0.5] * 3, True, True


def test_maps_of_two_pictures_are_json_and_back() -> None:
    tiny = TINY["LLaVA-1.5"]
    batch = tiny.batch(random_pictures(tiny, 2))
    model, family, _ = opened("LLaVA-1.5")
    found = made("LLaVA-1.5", batch, family.views(model.config, batch), ["a.png", "b.png"])
    assert [(one.name, one.rows, one.columns, one.layers) for one in found] == [("a.png", 2, 2, 3), ("b.png", 2, 2, 3)]
    for one in found:
        assert PictureMaps.of(json.loads(json.dumps(one.to_dict()))) == one
        assert one.image().size == (336, 336) and len(one.trace) == 5 and one.attention is not None
        assert all(low <= mean <= high for mean, low, high in one.trace)
    whole = {**found[0].to_dict()}
    for key, value in [("rows", 3), ("words", []), ("attention", [float("nan")] * 4), ("sinks", [4]), ("picture", "x")]:
        with pytest.raises((KeyError, TypeError, ValueError)):
            PictureMaps.of({**whole, key: value})


def test_a_grid_that_is_not_known_gives_a_list() -> None:
    tiny = TINY["LLaVA-1.5"]
    batch = tiny.batch(random_pictures(tiny, 2))
    wrong = [View(torch.zeros(3, 8, 8), 3, 1, 0)] * 2
    for views in (None, wrong, [replace(wrong[0], before=-1)]):
        (one,) = made("LLaVA-1.5", batch, views, ["a.png", "b.png"])  # as callers name one sample's pictures
        assert one.name == "a.png, b.png"
        assert (one.rows, one.columns, one.tokens, one.picture) == (0, 8, 8, "") and len(one.words[0]) == 8
        assert PictureMaps.of(one.to_dict()) == one
    assert len(placeholders(batch)) == 8


def test_pixels_come_back_as_colours() -> None:
    colour = torch.tensor([200, 30, 90]).view(3, 1, 1).expand(3, 8, 16)
    uri = as_jpeg((colour / 255 - 0.5) / 0.5, NORMED)
    image = PictureMaps("", "", "", uri, 1, 1, [], [], [], None, "", 0, [], [], 1).image()
    assert image.size == (336, 168)
    assert image.getpixel((100, 100)) == pytest.approx((200, 30, 90), abs=4)
