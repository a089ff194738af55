"""What is measured of a trained stage, on held-out samples: losses, answers, and the visual embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from basic_lite.data.batches import Collator
from basic_lite.data.pixels import pixels
from basic_lite.data.records import Record
from basic_lite.data.tokens import IGNORE
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.controls import other_images
from basic_lite.supervision import Supervision, refinement_curve
from basic_lite.supervision.metrics import embedding_metrics
from basic_lite.supervision.taps import hooked
from basic_lite.supervision.target import TargetPlan
from basic_lite.tools.evaluate import evaluate
from basic_lite.tools.score import ALL
from basic_lite.training.answer import chat_format
from basic_lite.training.assembly import autocast_of, supervise
from basic_lite.training.bundle import load_trained
from bench.evidence.worlds import EvidenceWorld

CPU = torch.device("cpu")
BATCH = 20
# Of samples in a batch of the refinement curve.
CURVE_BATCH = 4
# Which other picture a record is shown with in the control.
SHUFFLE_SEED = 0
DIGITS = 4


@torch.no_grad()
def measured(run: Path, recipe: Recipe, world: EvidenceWorld) -> dict[str, Any]:
    """Everything that the evidence says of one trained stage, ready for JSON."""
    loaded, bundle = load_trained(run, CPU)
    with autocast_of(recipe, CPU)():
        records = world.records(recipe.stage, world.sizes["losses"])
        other = other_images(records, SHUFFLE_SEED)
        shuffled = [replace(record, images=other(i)) for i, record in enumerate(records)]
        tokens, own = losses(loaded, recipe, records)
        _, others = losses(loaded, recipe, shuffled)
        found = {"tokens": tokens, "nll": own, "nll_other_picture": others}
        found |= _answers(loaded, recipe, world)
        found |= _embeddings(loaded, recipe, world, bundle.manifest["target"])
    return found


def losses(loaded: Loaded, recipe: Recipe, records: Sequence[Record]) -> tuple[list[int], list[float]]:
    """Each record's labelled tokens, and the sum of their losses in nats."""
    tokens: list[int] = []
    sums: list[float] = []
    for start in range(0, len(records), BATCH):
        batch = batch_of(loaded, recipe, records[start : start + BATCH])
        labels = batch.pop("labels")[:, 1:]
        hidden = loaded.model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
        logits = loaded.model.lm_head(hidden[rows, columns]).float()
        each = functional.cross_entropy(logits, labels[rows, columns], reduction="none")
        total = torch.zeros(len(labels)).index_add(0, rows, each)
        sums += [round(value, DIGITS) for value in total.tolist()]
        tokens += (labels != IGNORE).sum(1).tolist()
    return tokens, sums


def batch_of(loaded: Loaded, recipe: Recipe, records: Sequence[Record]) -> dict[str, Tensor]:
    chat = chat_format(recipe, loaded.frontend, recipe.data.template)
    samples: list[dict[str, Any]] = []
    for record in records:
        encoded = chat.encode(record, recipe.data.max_length)
        seen = pixels(record.images, loaded.frontend.image_processor, recipe.data.image_fit)
        samples.append({"input_ids": encoded.input_ids, "labels": encoded.labels, "pixel_values": seen})
    return Collator(int(loaded.tokenizer.pad_token_id))(samples)


def _answers(loaded: Loaded, recipe: Recipe, world: EvidenceWorld) -> dict[str, Any]:
    """After stage 1 each caption's score, after stage 2 whether each answer is right; the latter also for another's
    picture.
    """
    records = world.records(recipe.stage, world.sizes["answers"])
    options: dict[str, Any] = {"batch_size": BATCH, "template": recipe.data.template}
    result = evaluate(loaded, recipe, records, **options)
    if recipe.stage == 1:
        scores = [world.caption_score(one.prediction, one.reference) for one in result.predictions]
        return {"caption_f1": [round(score, DIGITS) for score in scores]}
    control = evaluate(loaded, recipe, records, shuffle_images=SHUFFLE_SEED, **options)
    return {
        "right": [int(bool(one.correct)) for one in result.predictions],
        "right_other_picture": [int(bool(one.correct)) for one in control.predictions],
        "by_type": {kind: round(share, DIGITS) for kind, share in result.accuracy.items() if kind != ALL},
    }


def _embeddings(loaded: Loaded, recipe: Recipe, world: EvidenceWorld, plan: dict[str, Any] | None) -> dict[str, Any]:
    """The refinement curve, and norms and likeness of v. Where BASIC was off, v̂ is what the paper's would be.

    Args:
        plan: the target that the run has chosen; None: the recipe's own.
    """
    section = recipe.supervision.model_copy(update={"enabled": True, "stages": [1, 2]})
    supervision = supervise(recipe.model_copy(update={"supervision": section}), loaded, lambda line: None)
    assert supervision is not None
    if plan is not None:
        supervision.use(TargetPlan.of(plan))
    records = world.records(recipe.stage, world.sizes["curve"])
    groups = [records[start : start + CURVE_BATCH] for start in range(0, len(records), CURVE_BATCH)]
    batches = [batch_of(loaded, recipe, group) for group in groups]
    curve = refinement_curve(supervision, batches, loaded.tokenizer)
    return {"curve": curve.to_dict(), "v": _of_v(loaded, supervision, batches)}


def _of_v(loaded: Loaded, supervision: Supervision, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the batches of the measures that a run with BASIC logs; those that need no v̂."""
    kept = ("pairwise_cos", "norm_to_vocabulary")
    totals = dict.fromkeys(kept, 0.0)
    for batch in batches:
        seen: list[Tensor] = []
        with hooked(loaded.parts.projector, seen.append):
            loaded.model.model.get_image_features(pixel_values=batch["pixel_values"])
        v = seen[0].reshape(-1, seen[0].shape[-1]).float()  # [M, D]
        layout = supervision.layout(batch)
        metrics = embedding_metrics(v, v, torch.ones(len(v)), layout, supervision.vocabulary)
        for name in kept:
            totals[name] += float(metrics[name]) / len(batches)
    return {name: round(value, DIGITS) for name, value in totals.items()}
