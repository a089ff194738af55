"""The text probe on SmolLM2: an untouched LoRA has cost nothing, and one that learnt four colours by heart a lot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from basic_lite.demo import ASSETS
from basic_lite.model.adapt import adapt, lora_parameters
from basic_lite.model.load import Loaded, load_base
from basic_lite.recipe.schema import Recipe
from basic_lite.training.text_probe import measure as measuring
from basic_lite.training.text_probe.measure import measure
from basic_lite.training.text_probe.outcome import Outcome
from basic_lite.training.text_probe.texts import passages, questions
from bench.world.llms import smollm2
from bench.world.packages import Unavailable

pytestmark = [pytest.mark.real, pytest.mark.soak]  # four minutes

STEPS, RATE = 30, 1e-3
LEARNT = [
    f"Question: What colour is the {thing}? Answer: {colour}"
    for thing in ("cup", "hat", "car", "fish")
    for colour in ("red", "blue", "green", "yellow")
]


@pytest.fixture(autouse=True)
def _fewer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A part of the probe, so that it takes less than a minute."""
    monkeypatch.setattr(measuring, "passages", lambda: passages()[:16])
    monkeypatch.setattr(measuring, "questions", lambda: questions()[::16])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def adapted() -> Loaded:
    try:
        llm = smollm2()
    except Unavailable as error:
        pytest.skip(str(error))
    recipe = Recipe.model_validate(
        {
            "name": "real",
            "stage": 2,
            "model": {"llm": str(llm), "vision": str(ASSETS / "vision"), "dtype": "float32"},
            "lora": {"enabled": True, "rank": 16, "alpha": 32.0, "dropout": 0.0},
            "data": {"train": {"path": "none.json"}},
        }
    )
    loaded = load_base(recipe, torch.device("cpu"))
    adapt(loaded.parts, recipe)
    return loaded


def learn(loaded: Loaded) -> None:
    """A few steps on nothing but colours, eight texts each."""
    batch = loaded.tokenizer(LEARNT, padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(lora_parameters(loaded.model).values(), RATE)
    draws = torch.Generator().manual_seed(0)
    loaded.model.train()
    for _ in range(STEPS):
        rows = torch.randperm(len(LEARNT), generator=draws)[:8]
        texts = {"input_ids": batch.input_ids[rows], "attention_mask": batch.attention_mask[rows]}
        loaded.model(**texts, labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_smollm2_forgets_what_it_is_made_to_forget(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = adapted()
    untouched = measure(loaded)
    assert isinstance(untouched, Outcome) and untouched.left_out == 0
    assert tuple(untouched.bits.difference) == (0, 0, 0) and untouched.right.difference.value == 0
    assert 0.5 < untouched.bits.before < 1.5, "it reads English, if not every language"
    assert untouched.right.before > 0.5, "chance is a third"
    learn(loaded)
    narrow = measure(loaded)
    assert isinstance(narrow, Outcome)
    with capsys.disabled():
        print(f"\n{untouched.text}\n{narrow.text}")
    assert (narrow.bits.before, narrow.right.before) == (untouched.bits.before, untouched.right.before)
    assert narrow.verdict == "fell" and narrow.bits.direction == 1
