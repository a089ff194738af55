"""The refinement curve against a naive count, and on a model whose visual embeddings are words."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from basic_lite.resampling import LEAST_SAMPLES
from basic_lite.supervision import Interval, RefinementCurve, premise, refinement_curve
from basic_lite.supervision.premise import SeenPatches
from tests.support import supervision as kit
from tests.support.words import word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def as_words(model: Any, words: list[int]) -> None:
    """Let the projector give exactly these words' embeddings, patch by patch."""
    table = model.get_input_embeddings().weight
    model.model.multi_modal_projector.register_forward_hook(
        lambda m, a, out: table[words].view(-1, kit.PATCHES, table.shape[1])
    )


def rows(*samples: list[int]) -> dict[str, Tensor]:
    width = max(map(len, samples))
    ids = torch.tensor([sample + [0] * (width - len(sample)) for sample in samples])
    mask = torch.tensor([[1] * len(sample) + [0] * (width - len(sample)) for sample in samples])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.zeros(len(samples), 3, 8, 8)}


def test_shares_at_v(tokenizer: PreTrainedTokenizerFast) -> None:
    model = kit.tiny_llava()
    image = [kit.IMAGE] * kit.PATCHES
    # 12 and 13 in the first, 10 (as "Tree" in the text) in the second; short words and specials never match.
    as_words(model, [12, 13, 20, 3, 10, 12, 4, 1])
    batch = rows([1, *image, 12, 13, 3, 4, 5, 6], [1, *image, 9, 22, 2])
    curve = refinement_curve(kit.build(model), [batch], tokenizer)
    assert curve.places == ["v", "h1", "h2", "h3", "h4", "target"]
    assert (curve.samples, curve.patches) == (2, 8)
    assert curve.own[0] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert curve.control is not None and curve.control[0] == pytest.approx((0 / 4 + 1 / 4) / 2)
    assert curve.score is not None and curve.score[0] == pytest.approx(0.25)
    json.dumps(curve.to_dict(), allow_nan=False)


def test_a_few_patches_spread_evenly_are_looked_up(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert premise._spread(9).tolist() == list(range(9))
    many = premise._spread(576)
    assert many.tolist()[::63] == [0, 575] and many.diff().unique().tolist() == [9, 10]
    monkeypatch.setattr(premise, "SEARCHED_PATCHES", 2)
    model = kit.tiny_llava()
    image = [kit.IMAGE] * kit.PATCHES
    as_words(model, [12, 13, 20, 3, 14, 15, 16, 22])
    curve = refinement_curve(kit.build(model), [rows([*image, 12, 13], [*image, 15, 16, 22])], tokenizer)
    assert curve.patches == 4 and curve.own[0] == 0.5, "the first and the last patch of each sample"


def test_a_letter_of_an_unspaced_script_is_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    model = kit.tiny_llava()
    as_words(model, [8, 8, 3, 3])
    curve = refinement_curve(kit.build(model), [rows([*([kit.IMAGE] * kit.PATCHES), 8, 3])], tokenizer)
    assert curve.own[0] == 0.5 and curve.control is None and curve.score is None and curve.warning() is None


@pytest.mark.parametrize("settings", [{}, {"target_norm": "final", "layers": 3}, {"enabled": False}])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_place_matches_the_naive_count(
    settings: dict[str, Any], padding_side: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = kit.tiny_llava()
    batches = [kit.tiny_batch(padding_side=padding_side), kit.tiny_batch("text"), kit.tiny_batch("image", seed=5)]
    supervision = kit.build(model, **settings)
    curve = refinement_curve(supervision, batches, tokenizer)

    words = torch.tensor([i for i in kit.word_ids().tolist() if i != kit.IMAGE])
    table = model.get_input_embeddings().weight[words]
    norm = model.model.language_model.norm
    texts, found = [], []
    for batch in batches:
        seen: dict[str, Tensor] = {}
        hook = norm.register_forward_pre_hook(lambda m, a, seen=seen: seen.update(last=a[0]))
        states = list(model(**kit.inputs(batch), output_hidden_states=True).hidden_states)
        hook.remove()
        states[-1] = seen["last"]
        K = supervision.layers
        refined = [norm(s) if supervision.settings.target_norm == "final" else s for s in states]
        states.append(sum(h * h * refined[h] for h in range(1, K + 1)))
        for b, ids in enumerate(batch["input_ids"]):
            visual = ids == kit.IMAGE
            if visual.any():
                texts.append(
                    {
                        tokenizer.decode([i]).casefold()
                        for i in ids.tolist()
                        if i > 2 and i not in (kit.IMAGE, 3, 4, 5, 6)
                    }
                )
                near = [torch.cosine_similarity(s[b][visual][:, None], table[None], dim=2).argmax(1) for s in states]
                found.append([[tokenizer.decode([words[i]]).casefold() for i in place] for place in near])
    for place in range(kit.LAYERS + 2):
        share = [[sum(w in text for w in own[place]) / len(own[place]) for text in texts] for own in found]
        S = len(texts)
        own_share = sum(share[s][s] for s in range(S)) / S
        control = sum(share[s][t] for s in range(S) for t in range(S) if s != t) / (S * (S - 1))
        assert curve.own[place] == pytest.approx(own_share), curve.places[place]
        assert curve.control is not None and curve.control[place] == pytest.approx(control)
    assert curve.samples == 5 and curve.patches == 6 * kit.PATCHES
    assert any(curve.own), "something matches, else nothing is compared"


def test_modes_hooks_and_generators_are_left_as_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    model = kit.tiny_llava().train()
    model.model.vision_tower.eval()
    batch = kit.tiny_batch("image")
    model(**kit.inputs(batch))
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    state = torch.get_rng_state()
    curve = refinement_curve(kit.build(model), [batch], tokenizer)
    assert model.training and model.lm_head.training and not model.model.vision_tower.training
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert curve == refinement_curve(kit.build(model), [batch], tokenizer)


def curve_of(gain: Interval, samples: int = 64) -> RefinementCurve:
    """v .012 and v̂ .012 + the gain, above the control."""
    own = [0.112, 0.142, 0.112 + gain.value]
    return RefinementCurve(["v", "h1", "target"], own, [0.1] * 3, samples, 640, [Interval(0.03, -0.1, 0.2), gain], None)


def test_words_follow_the_interval() -> None:
    fails = curve_of(Interval(-0.02, -0.03, -0.001))
    text = fails.warning()
    assert text is not None and "premise does not hold" in text and "-0.020 [-0.030, -0.001]" in text
    assert fails.verdict == "fails" and "supervision.enabled=false" in text
    unknown = curve_of(Interval(0.004, -0.01, 0.018))
    assert unknown.warning() is None and unknown.verdict == "can't tell"
    told = "v +0.012 → v̂ +0.016, gain +0.004 [-0.010, +0.018] over 64 samples: can't tell"
    assert told in unknown.summary() and unknown.summary().endswith("(best after layer 1: +0.042)")
    holds = curve_of(Interval(0.02, 0.001, 0.03))
    assert holds.warning() is None and holds.verdict == "holds" and "over 64 samples: holds" in holds.summary()
    same = curve_of(Interval(0.0, 0.0, 0.0))
    assert "gain +0.000 (in every sample) over 64 samples: can't tell" in same.summary()


def test_of_too_few_samples_there_is_no_interval() -> None:
    """A bootstrap of one to three would have next to no width; the gain itself is shown, and chooses layers."""
    texts = [{"red", "the"}, {"blue", "the"}, {"green", "the"}] * 5
    # One token of two names its own colour: nowhere at v, after layer 1 if that is red, and at all of them in v̂.
    nearest = [[["x", "the"], ["red" if "red" in text else "x", "the"], [min(text - {"the"}), "the"]] for text in texts]
    seen = SeenPatches(["v", "h1", "target"], None, texts, nearest, {}, None)  # type: ignore[arg-type]
    for samples in (2, 3, LEAST_SAMPLES - 1):
        curve = seen.curve(range(samples))
        assert curve.gains == [] and curve.gain is None and curve.verdict == "can't tell" and curve.warning() is None
        assert curve.gain_values[-1] > 0.3
        told = (
            f"gain {curve.gain_values[-1]:+.3f} over {samples} samples, too few pictures for an interval, 16 at least"
        )
        assert f"{told}: can't tell" in curve.summary() and "[" not in curve.summary()
    assert (
        curve.score is not None
        and curve.layer_gains == [pytest.approx(curve.score[1] - curve.score[0])]
        and curve.layer_gains != [0.0]
    )
    more = SeenPatches(seen.places, seen.words, [*texts, texts[0]], [*nearest, nearest[0]], {}, None).curve()
    assert more.gain is not None and more.gain.low < more.gain.value == pytest.approx(more.gain_values[-1])
    assert "too few" not in more.summary()
    # What versions before wrote of few samples isn't shown either.
    logged = {**curve.to_dict(), "gains": [list(gain) for gain in more.gains]}
    assert RefinementCurve.from_dict(logged) == curve


def test_a_log_gives_the_curve_back_and_an_old_one_has_no_interval(tokenizer: PreTrainedTokenizerFast) -> None:
    curve = refinement_curve(
        kit.build(kit.tiny_llava()), [kit.tiny_batch("image", seed=n) for n in range(8)], tokenizer
    )
    record = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert curve.gain is not None and record["gains"][-1] == list(curve.gain) and len(record["gains"]) == kit.LAYERS + 1
    assert RefinementCurve.from_dict(record) == curve
    old = RefinementCurve.from_dict({name: record[name] for name in ("places", "own", "control", "samples", "patches")})
    assert old.score == curve.score and old.gain is None and old.verdict == "can't tell" and old.warning() is None
    assert "over 16 samples, without an interval: can't tell" in old.summary()


def test_no_image_at_all(tokenizer: PreTrainedTokenizerFast) -> None:
    curve = refinement_curve(kit.build(kit.tiny_llava()), [kit.tiny_batch("text")], tokenizer)
    assert curve.samples == curve.patches == 0 and curve.warning() is None
    assert kit.VOCAB > kit.WORDS
