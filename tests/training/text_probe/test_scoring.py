"""Log-probabilities of the probe: against naive float64, whatever the batches are."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from basic_lite.data.tokens import IGNORE, Tokens
from basic_lite.model import llava
from basic_lite.training.text_probe.measure import encoded
from basic_lite.training.text_probe.scoring import Sample, Stopped, nats_of
from basic_lite.training.text_probe.texts import passages, questions
from tests.support.readers import byte_tokenizer, few_passages, few_questions, reader

IMAGE = 300


def parts_of(model: Any) -> Any:
    """The parts that are asked: an LLM alone has no tower."""
    return SimpleNamespace(language_model=model.model, lm_head=model.lm_head, device=model.device)


def samples_of(tokenizer: Any) -> list[Sample]:
    return encoded(Tokens(tokenizer, IMAGE, 4), few_passages()[::4], few_questions()[::4]).samples


def naive(model: Any, given: str, text: str, *, bos: bool) -> float:
    """Σ −log p of the bytes of ``text``, each from all bytes before it, by a forward for each byte."""
    ids = [1] * bos + [model_id(byte) for byte in given.encode()]
    total = 0.0
    for byte in text.encode():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[model_id(byte)])
        ids.append(model_id(byte))
    return total


def model_id(byte: int) -> int:
    """The token of a byte: ``byte_tokenizer`` has them in the order of GPT-2's signs for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [one for one in range(256) if one not in plain]
    sign = {one: chr(one) for one in plain} | {one: chr(256 + n) for n, one in enumerate(others)}
    return 4 + sorted(sign.values()).index(sign[byte])


@pytest.mark.parametrize("kind, bos", [("llama", True), ("llama", False), ("gemma", True), ("mistral", False)])
def test_oracle(kind: str, bos: bool) -> None:
    model, tokenizer = reader(kind, bos=bos)
    texts = [
        replace(one, text=one.text[:length]) for one, length in zip(few_passages()[1::9], (9, 24, 14), strict=False)
    ]
    samples = encoded(Tokens(tokenizer, IMAGE, 4), texts, []).samples
    exact = copy.deepcopy(model).double()
    want = [naive(exact, one.given, one.text, bos=bos) for one in texts]
    assert nats_of(parts_of(exact), samples, 1000) == pytest.approx(want, rel=1e-6)
    assert nats_of(parts_of(model), samples, 60) == pytest.approx(want, rel=1e-4)
    assert max(want) > 1.1 * 24 * math.log(320), "it is sure of what it says, so all that it reads counts"


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_batches_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = reader(kind)
    samples, seen = samples_of(tokenizer), []
    assert len({len(one.ids) for one in samples}) > 5
    alone = nats_of(parts_of(model), samples, 1)
    for size in (170, 10_000):
        assert nats_of(parts_of(model), samples, size, progress=seen.append) == pytest.approx(alone, rel=1e-4)
    assert seen[-1] == len(samples) and len(seen) > 3 and sum(seen) == 2 * len(samples)
    monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * 320 * 7)  # seven rows of logits at once
    assert nats_of(parts_of(model), samples, 10_000) == pytest.approx(alone, rel=1e-4)


def test_logits_of_all_rows_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = reader()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * 320 * 16)
    samples = samples_of(tokenizer)
    nats_of(parts_of(model), samples, 10_000)
    assert max(rows) == 16 and sum(rows) == sum(one.scored for one in samples)


@pytest.mark.parametrize("bos", [True, False])
def test_what_is_given_is_not_scored(bos: bool) -> None:
    tokens = Tokens(byte_tokenizer(bos=bos), IMAGE, 4)
    probe = encoded(tokens, passages(), questions())
    assert probe.left_out == 0 and tokens.bos == [1] * bos
    # A byte is a token here, so the scored ones are the bytes of the texts, with and without a start token.
    assert [one.scored for one in probe.texts] == probe.sizes
    assert all(one.labels[0] == IGNORE and one.ids[: len(tokens.bos)] == tokens.bos for one in probe.samples)
    scores = probe.scores([float(n) for n in range(len(probe.samples))])
    assert len(scores.bits) == len(passages()) and scores.right.all(), "the right one is the first of each"


def test_it_stops_between_batches() -> None:
    (model, tokenizer), done = reader(), []
    with pytest.raises(Stopped):
        nats_of(parts_of(model), samples_of(tokenizer), 1, done.append, stopped=lambda: len(done) == 3)
    assert len(done) == 3
