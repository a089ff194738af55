"""The probe on a model: what off means, that nothing else changes, and where there is nothing to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from basic_lite.data.tokens import Tokens
from basic_lite.model.adapt import adapt, adapter_off, lora_parameters
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.lora import AddmmLinear
from basic_lite.training.text_probe import measure as measuring
from basic_lite.training.text_probe.measure import FROZEN, encoded, measure
from basic_lite.training.text_probe.outcome import NoOutcome, Outcome
from basic_lite.training.text_probe.scoring import nats_of
from basic_lite.training.text_probe.texts import passages, questions
from tests.support.readers import few_passages, few_questions, write_reader
from tests.support.runs import tiny_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    write_reader(folder / "reader")
    return folder


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "passages", few_passages)
    monkeypatch.setattr(measuring, "questions", few_questions)


def adapted(folder: Path, llm: str = "reader", *, on_card: bool = False) -> Loaded:
    """An LLM in NF4 with a LoRA that drops out."""
    recipe = tiny_recipe(folder, {"model.llm": str(folder / llm), "lora.dropout": 0.5})
    loaded = load_base(recipe, CPU)
    adapt(loaded.parts, recipe, on_card=on_card)
    return loaded


@pytest.fixture(scope="module")
def base(folder: Path) -> Loaded:
    return load_base(tiny_recipe(folder, {"model.llm": str(folder / "reader")}), CPU)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Loaded:
    return adapted(folder)


@pytest.fixture
def loaded(shared: Loaded) -> Loaded:
    """An untouched LoRA, in training."""
    set_up_to(shared, 0.0)
    for parameter in lora_parameters(shared.model).values():
        parameter.requires_grad_(True)
    shared.model.train()
    return shared


def set_up_to(loaded: Loaded, most: float) -> None:
    """Set each B of the LoRA to numbers of about that size, which may be infinite."""
    torch.manual_seed(1)
    for name, parameter in lora_parameters(loaded.model).items():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter) * most if most else torch.zeros_like(parameter))


@pytest.mark.parametrize("on_card", [False, True])
def test_off_is_the_llm_as_it_was_loaded(folder: Path, base: Loaded, loaded: Loaded, on_card: bool) -> None:
    samples = encoded(Tokens(base.tokenizer, base.parts.image_token_id, 4), few_passages()[:5], []).samples
    want = nats_of(base.parts, samples, 500)
    loaded = adapted(folder, on_card=True) if on_card else loaded
    assert any(isinstance(one, AddmmLinear) for one in loaded.parts.layers.modules()) is on_card
    loaded.model.eval()
    assert nats_of(loaded.parts, samples, 500) == want, "an untouched LoRA adds nothing"
    set_up_to(loaded, 1.0)
    with adapter_off(loaded.parts):
        assert nats_of(loaded.parts, samples, 500) == want
    assert all(one != other for one, other in zip(nats_of(loaded.parts, samples, 500), want, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_but_the_mode_changes(loaded: Loaded, frozen: bool) -> None:
    if frozen:  # as a bundle is loaded
        loaded.model.requires_grad_(False)
    before = {name: (one.clone(), one.requires_grad) for name, one in loaded.model.named_parameters()}
    random = torch.get_rng_state()
    found = measure(loaded)
    assert isinstance(found, Outcome) and found.verdict == "did not change at all"
    assert tuple(found.bits.difference) == (0, 0, 0) and found.right.difference.value == 0
    assert torch.equal(torch.get_rng_state(), random) and not loaded.model.training
    for name, one in loaded.model.named_parameters():
        assert torch.equal(one, before[name][0]) and one.requires_grad is before[name][1], name
        assert one.grad is None


def test_a_spoilt_lora_has_lost(loaded: Loaded) -> None:
    set_up_to(loaded, 1.0)
    found = measure(loaded)
    assert isinstance(found, Outcome) and found.bits.direction == 1 and found.verdict == "fell"
    assert found == measure(loaded), "dropout is off"
    assert found.bits.n == len(few_passages()) and found.right.n == len(few_questions()) and found.left_out == 0


def test_where_there_is_nothing_to_measure(folder: Path, base: Loaded, loaded: Loaded) -> None:
    assert measure(base) == NoOutcome(FROZEN)
    write_reader(folder / "random", steps=0)
    random = measure(adapted(folder, "random"))
    assert isinstance(random, NoOutcome) and "doesn't know the language of the text probe" in random.why
    words = measure(adapted(folder, "llm"))  # 44 words, of which the probe has some
    assert isinstance(words, NoOutcome) and "its tokenizer can write 0 of the probe's" in words.why
    set_up_to(loaded, float("inf"))
    broken = measure(loaded)
    assert isinstance(broken, NoOutcome) and "not finite" in broken.why


def test_what_a_tokenizer_cannot_write_is_left_out() -> None:
    """Signs as tokens, without those of Russian, Chinese and Japanese, and without small letters' accents."""
    signs = ["<unk>", *map(chr, range(10, 256))]
    core = Tokenizer(models.WordLevel({sign: n for n, sign in enumerate(signs)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens = Tokens(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), 300, 4)
    probe = encoded(tokens, passages(), questions())
    kept = {one.given for one in probe.passages}
    out = [one for one in passages() if one.given not in kept]
    assert {one.kind for one in out} == {"languages"} and len(out) == 3
    assert probe.left_out == 3 + len(questions()) - len(probe.questions)
    assert len(probe.questions) == sum(
        all(ord(sign) < 256 for text in (one.given, *one.continuations) for sign in text) for one in questions()
    )
    assert len(probe.continuations) == sum(len(one.continuations) for one in probe.questions)
