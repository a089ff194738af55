"""Health figures against a loop in float64, and the two illnesses."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Health, refinement_curve
from basic_lite.supervision.health import HealthMeter
from basic_lite.supervision.patch_weights import SINK_MULTIPLE
from tests.support import supervision as kit
from tests.support.words import word_tokenizer

TOKENS = [[5, 1, 3], [6]]  # visual tokens of each sample of two batches
MEAN_NORM = 0.5


def states(places: int = 3, width: int = 6) -> list[list[list[Tensor]]]:
    """[batch][place][sample] rows [n, D] in float64, with sinks and a large dimension."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for counts in TOKENS:
        rows = [
            [torch.randn(n, width, generator=generator, dtype=torch.float64) for n in counts] for _ in range(places)
        ]
        rows[1][0][2] *= 40
        rows[2][0][:, 4] += 9
        batches.append(rows)
    return batches


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def naive(batches: list[list[list[Tensor]]]) -> Health:
    """Each figure from its definition, one token and one pair at a time."""
    found: dict[str, list[float]] = {name: [] for name in Health.__dataclass_fields__}
    for place in range(len(batches[0])):
        samples = [sample for batch in batches for sample in batch[place]]
        of_v = [sample for batch in batches for sample in batch[0]]
        several = [sample for sample in samples if len(sample) > 1]
        found["first_norm"].append(mean([float(s[0].norm()) for s in samples]) / MEAN_NORM)
        found["other_norm"].append(mean([mean([float(x.norm()) for x in s[1:]]) for s in several]) / MEAN_NORM)
        energy = [sum(float(x[d]) ** 2 for s in samples for x in s) for d in range(samples[0].shape[1])]
        found["largest_share"].append(max(energy) / sum(energy))
        found["largest_dimension"].append(energy.index(max(energy)))
        sinks = []
        for s in samples:
            norms = sorted(float(x.norm()) for x in s)
            sinks += [float(norm > SINK_MULTIPLE * norms[(len(norms) - 1) // 2]) for norm in norms]
        found["sink_share"].append(mean(sinks))
        pairs = [
            mean(
                [float(torch.cosine_similarity(s[i], s[j], 0)) for i in range(len(s)) for j in range(len(s)) if i != j]
            )
            for s in several
        ]
        found["pairwise_cos"].append(mean(pairs))
        tokens, initial = torch.cat(samples), torch.cat(of_v)
        cosines = [float(torch.cosine_similarity(x, y, 0)) for x, y in zip(tokens, initial, strict=True)]
        found["cos_v"].append(mean(cosines))
    return Health(**found)  # type: ignore[arg-type]


def same(found: Health, truth: Health, rel: float) -> None:
    for name, expected in asdict(truth).items():
        assert getattr(found, name) == pytest.approx(expected, rel=rel, abs=rel), name


def test_figures_match_the_naive_loop() -> None:
    batches = states()
    meter = HealthMeter(3, MEAN_NORM)
    assert meter.health() is None
    for counts, batch in zip(TOKENS, batches, strict=True):
        for place, rows in enumerate(batch):
            meter.add(place, torch.cat(rows).float(), counts)
    found = meter.health()
    assert found is not None
    same(found, naive(batches), 1e-5)
    assert 0 < found.sink_share[1] < 1 and found.largest_dimension[2] == 4 and found.sink_share[0] == 0


def test_a_model_s_figures_match_its_hidden_states() -> None:
    """The curve's own forwards give them; text rows and padding don't count."""
    model = kit.tiny_llava()
    supervision = kit.build(model)
    batches = [kit.tiny_batch(padding_side="left"), kit.tiny_batch("image", seed=5)]
    curve = refinement_curve(supervision, batches, word_tokenizer())
    truth = []
    for batch in batches:
        seen: dict[str, Tensor] = {}
        hook = model.model.language_model.norm.register_forward_pre_hook(lambda m, a, seen=seen: seen.update(x=a[0]))
        with torch.no_grad():
            hidden = [*model(**kit.inputs(batch), output_hidden_states=True).hidden_states[:-1], seen["x"]]
        hook.remove()
        K = supervision.layers
        hidden.append(sum(h * h * hidden[h] for h in range(1, K + 1)) / sum(h * h for h in range(1, K + 1)))
        visual = batch["input_ids"] == kit.IMAGE
        rows = [b for b in range(len(visual)) if visual[b].any()]
        truth.append([[state[b][visual[b]].double() for b in rows] for state in hidden])
    assert curve.health is not None
    scale = float(supervision.vocabulary.mean_norm()) / MEAN_NORM
    expected = naive(truth)
    norms = {name: [x / scale for x in getattr(expected, name)] for name in ("first_norm", "other_norm")}
    same(curve.health, replace(expected, **norms), 1e-4)
    assert curve.health.cos_v[0] == pytest.approx(1) and len(curve.health.cos_v) == kit.LAYERS + 2


def of_target(*, v: float, target: float, share: float, cos: float) -> Health:
    """Health of v and v̂ alone."""
    return Health([v, target], [v, target], [0.01, share], [3, 507], [0.0, 0.0], [0.5, 0.8], [1.0, cos])


@pytest.mark.parametrize(
    ("health", "names"),
    [
        (of_target(v=2.2, target=280, share=0.98, cos=0.03), ["giant target"]),  # SmolLM2
        (of_target(v=2.2, target=3, share=0.6, cos=0.9), ["giant target"]),  # one dimension
        (of_target(v=2.2, target=40, share=0.1, cos=0.2), ["giant target"]),  # long, and turned away
        (of_target(v=78, target=85, share=0.05, cos=0.98), ["inert residual"]),  # the demo
        (of_target(v=2.2, target=40, share=0.1, cos=0.8), []),  # long alone: the direction is v's
        (of_target(v=2.2, target=2.3, share=0.05, cos=0.98), []),  # near alone: the layers may still turn it
        (of_target(v=0, target=0, share=0, cos=0), []),
    ],
)
def test_illnesses_are_named_with_their_keys(health: Health, names: list[str]) -> None:
    found = health.illnesses(SupervisionSection())
    assert list(found) == names
    for name, text in found.items():
        giant = name == "giant target"
        keys = ("supervision.target_norm=layer", "supervision.sinks=drop") if giant else ("model.projector_start=",)
        assert all(key in text for key in keys)


def test_a_scaled_target_is_not_too_long_and_what_is_set_is_not_asked_for() -> None:
    treated = SupervisionSection(target_norm="layer", sinks="drop")
    assert of_target(v=2.2, target=280, share=0.1, cos=0.03).illnesses(treated) == {}
    (text,) = of_target(v=2.2, target=280, share=0.98, cos=0.03).illnesses(treated).values()
    assert "supervision." not in text and "don't help" in text
    (text,) = (
        of_target(v=2.2, target=280, share=0.98, cos=0.03).illnesses(SupervisionSection(target_norm="layer")).values()
    )
    assert "treat it with supervision.sinks=drop" in text
