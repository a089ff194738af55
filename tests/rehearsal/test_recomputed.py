"""The rehearsal of a step that recomputes some of the layers, and its time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from basic_lite.model import offload
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal import Machine, Rehearser, rehearse
from basic_lite.rehearsal.cost import Sizes, products
from basic_lite.rehearsal.step import KEPT
from tests.support.models import write_llm, write_vision
from tests.support.peaks import measured_peak, recipe_of, unseen
from tests.support.runs import whole_recipe

KEY = "training.gradient_checkpointing"
LAYERS = 6
BF16 = {"model.dtype": "bfloat16", "training.autocast": "bfloat16"}
CASES: dict[str, dict[str, Any]] = {
    "one": {KEY: 1},
    "two, target with a graph": {KEY: 2, "supervision.detach": False},
    "four on the host, bf16 autocast": {KEY: 4, **BF16, "training.offload_activations": True},
    "all but one, eager, robust": {
        KEY: 5,
        "model.attention": "eager",
        "supervision.target_norm": "layer",
        "supervision.sinks": "drop",
    },
}


IN_CI = "four on the host, bf16 autocast"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=pytest.mark.long if name == IN_CI else pytest.mark.soak)
        for name, changes in CASES.items()
    ],
)
def test_rehearsed_peak_is_the_measured_one(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(folder, changes)
    monkeypatch.setattr(offload, "MIN_BYTES", 2**18)
    rehearsed = rehearse(recipe, load_frontend(recipe.model), Machine.this_cpu(recipe))
    assert (rehearsed.recomputed, rehearsed.layers) == (changes[KEY], LAYERS)
    monkeypatch.setattr(offload, "empty_host", unseen)
    measured = measured_peak(recipe)
    print(f"rehearsed {rehearsed.peak_bytes / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB", rehearsed.by_part)
    # What goes to the host is 2.4 % of the peak.
    most = 0.005 if recipe.training.offload_activations else 0.02
    assert rehearsed.peak_bytes == pytest.approx(measured, rel=most)


@pytest.mark.parametrize(
    "changes, counts",
    [
        pytest.param(
            {**BF16, "supervision.detach": False},
            (3, 0),
            id="bf16 autocast, target with a graph",
            marks=pytest.mark.long,
        ),
        pytest.param({}, (3, 0, 6, 1, 5), id="float32", marks=pytest.mark.soak),
        pytest.param(
            {**BF16, "training.offload_activations": True, "training.micro_batch": 8},
            (1, 6, 4),
            id="bf16 autocast, on the host",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            {**BF16, "supervision.token_weights": "uniform"}, (0, 3), id="uniform weights", marks=pytest.mark.soak
        ),
    ],
)
def test_repeats_change_nothing(
    folder: Path, changes: dict[str, Any], counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model is rehearsed with every number in turn, so nothing of one may be left in the next."""
    monkeypatch.setattr(offload, "MIN_BYTES", 2**19)
    recipe = recipe_of(folder, changes)
    frontend, machine = load_frontend(recipe.model), Machine.this_cpu(recipe)
    short, full = (Rehearser(recipe, frontend, machine, in_full=in_full) for in_full in (False, True))
    for count in counts:
        mine, whole = (rehearser.rehearse(recomputed=count) for rehearser in (short, full))
        assert mine.peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-3)
        assert mine.forward_peak_bytes == pytest.approx(whole.forward_peak_bytes, rel=1e-3)
        assert mine.before_peak_bytes == pytest.approx(whole.before_peak_bytes, rel=1e-3)
        assert mine.by_part == pytest.approx(whole.by_part, rel=0.01, abs=64 * 1024)
        assert mine.host_bytes == whole.host_bytes


@pytest.mark.soak
def test_layers_of_two_sorts(tmp_path: Path) -> None:
    """Sliding and full layers take turns, so what follows a layer is never of its sort."""
    write_llm(tmp_path / "llm", "gemma3", num_hidden_layers=8, layer_types=["sliding_attention", "full_attention"] * 4)
    write_vision(tmp_path / "vision")
    recipe = whole_recipe(tmp_path, {"model.attention": "eager"})
    frontend, machine = load_frontend(recipe.model), Machine.this_cpu(recipe)
    short, full = (Rehearser(recipe, frontend, machine, in_full=in_full) for in_full in (False, True))
    for count in (0, 3, 8):
        mine, whole = (rehearser.rehearse(recomputed=count) for rehearser in (short, full))
        assert mine.peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-3)


@pytest.mark.soak
def test_each_layer_more_saves_the_same(folder: Path) -> None:
    recipe = recipe_of(folder, {"supervision.enabled": False})
    rehearser = Rehearser(recipe, load_frontend(recipe.model), Machine.this_cpu(recipe))
    found = [rehearser.rehearse(recomputed=count) for count in range(LAYERS + 1)]
    kept = [rehearsal.by_part[KEPT] for rehearsal in found]
    assert kept == sorted(kept, reverse=True)
    saved = [a.needed_bytes - b.needed_bytes for a, b in pairwise(found)]
    assert saved[:4] == pytest.approx([saved[0]] * 4, rel=0.01) and saved[0] > 2**20


def test_time_follows_the_number() -> None:
    sizes = Sizes(
        tokens=64, visual=16, queries=48, labelled=20, tower_tokens=17, D=64, V=200, L=4, K=2, llm_weights=1e6,
        lora_weights=1e4, tower_weights=1e4, projector_weights=1e4, recomputed=0,
    )  # fmt: skip
    none, one, every = (products(replace(sizes, recomputed=count)) for count in (0, 1, 4))
    assert every["LLM linears"] == pytest.approx(3 / 2 * none["LLM linears"])
    assert every["LoRA"] == pytest.approx(4 / 3 * none["LoRA"])
    assert every["attention"] == pytest.approx(4 / 3 * none["attention"])
    for part in none:
        assert one[part] - none[part] == pytest.approx((every[part] - none[part]) / 4)
