"""``supervision.preset: paper``, bit for bit: what other presets need changes nothing of it.

The same steps are made with the method's formulas written out. Only three operations are taken as they are: attention
mass, DAS and SDS of given rows. Tests of their own hold them to float64, and ``tests/supervision/test_oracle.py`` the
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.console import speaker
from basic_lite.data.prepare import prepare_data
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import make_step, supervise
from basic_lite.training.step import Batch, StepCounts, TrainStep
from basic_lite_kernels.eager_direction_loss import direction_loss
from basic_lite_kernels.operations import EAGER
from basic_lite_kernels.signatures import MassTokens
from tests.support.runs import TERMS, quiet, tiny_recipe
from tests.support.steps import CPU, load_tiny

STEPS = 2


class Written:
    """A micro-batch's loss as docs/METHOD.md has it, from what hooks see of the model."""

    def __init__(self, loaded: Loaded, step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded, self.parts, self.step = loaded, loaded.parts, step
        K = len(self.parts.layers) // 2
        self.weights = [h * h / sum(k * k for k in range(1, K + 1)) for h in range(1, K + 1)]
        self.v: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.attended: list[tuple[Tensor, Tensor]] = []
        self.parts.projector.register_forward_hook(lambda _, args, out: self.v.append(out.flatten(0, 1)))
        for layer in self.parts.layers[:K]:
            layer.register_forward_hook(lambda _, args, out: self.hidden.append(out.detach()))
        inside = [module for layer in self.parts.layers[:K] for module in layer.modules()]
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attention(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Any:
            if module in inside:
                self.attended.append((query.detach(), key.detach()))
            return sdpa(module, query, key, *rest, **options)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attention)

    def terms(self, batch: Batch, counts: StepCounts) -> dict[str, Tensor]:
        """L and its terms."""
        for seen in (self.v, self.hidden, self.attended):
            seen.clear()
        lm = self.step.forward(**self.step.inputs(batch), num_items_in_batch=counts.labelled_tokens).loss
        (v,), K = self.v, len(self.weights)
        valid, visual = batch["attention_mask"].bool(), batch["input_ids"] == self.parts.image_token_id
        at = visual.flatten().nonzero().squeeze(1)
        text = valid & ~visual & (visual.cumsum(dim=1) > 0)

        target = torch.zeros_like(v)
        for w, hidden in zip(self.weights, self.hidden, strict=True):
            target.add_(hidden.flatten(0, 1)[at], alpha=w)
        tokens = MassTokens.of(text, visual, valid)
        mass = torch.zeros(valid.shape)
        for query, key in self.attended:
            mass += EAGER.attention_mass(query, key, scaling=query.shape[-1] ** -0.5, tokens=tokens)
        a = (mass / (K * text.sum(dim=1, keepdim=True).clamp_min(1))).flatten()[at]

        words = self.loaded.vocabulary_ids[self.loaded.vocabulary_ids != self.parts.image_token_id]
        excluded = torch.ones(int(words.max()) + 1, dtype=torch.bool).index_fill(0, words, False)
        E = self.parts.embeddings.weight.detach()[: len(excluded)]
        das = direction_loss(v, target, a) / counts.samples_with_image
        sds = EAGER.vocab_kl(v, target, E, a, excluded=excluded) / counts.samples_with_image
        return {"loss": lm + das + 0.01 * sds, "lm": lm, "das": das, "sds": sds}


def with_sinks(recipe: Recipe) -> Loaded:
    """The recipe's model; the second visual token of each image is thirty times as long: ``sinks: drop`` drops it."""
    loaded = load_tiny(recipe)
    longer = torch.tensor([30.0 if at == 1 else 1.0 for at in range(loaded.frontend.tokens_per_image)])
    loaded.parts.projector.register_forward_hook(lambda _, args, out: out * longer[:, None])
    return loaded


def steps(recipe: Recipe, loaded: Loaded) -> Iterator[tuple[list[Batch], StepCounts]]:
    """Each step's two micro-batches of two samples, and their counts."""
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    pairs = [data.collator([data.train[at], data.train[at + 1]]) for at in range(0, 4 * STEPS, 2)]
    for at in range(0, len(pairs), 2):
        batches = pairs[at : at + 2]
        yield batches, StepCounts.of(batches, loaded.parts.image_token_id)


def updated(step: TrainStep) -> list[Tensor]:
    """The gradients, and after the update the weights."""
    gradients = [one.grad.clone() for one in step.trainable if one.grad is not None]
    step.update()
    return [*gradients, *(one.detach().clone() for one in step.trainable)]


def made(recipe: Recipe) -> Iterator[Tensor]:
    """Terms, gradients and weights of each step, as a run makes it."""
    loaded = with_sinks(recipe)
    supervision = supervise(recipe, loaded, speaker(quiet()))
    assert supervision is not None
    step = make_step(recipe, loaded, supervision, CPU)
    for number, (batches, counts) in enumerate(steps(recipe, loaded)):
        sums = step.gradients(batches, counts, supervision.lambdas(number, STEPS), number=number).sums()
        yield from (sums[name] for name in TERMS)
        yield from updated(step)


def written(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensor]:
    """The same, with the formulas written out."""
    loaded = with_sinks(recipe)
    step = make_step(recipe, loaded, None, CPU)
    formulas = Written(loaded, step, monkeypatch)
    for batches, counts in steps(recipe, loaded):
        found = []
        for batch in batches:
            found.append(formulas.terms(batch, counts))
            found[-1]["loss"].backward()
        yield from (found[0][name].detach() + found[1][name].detach() for name in TERMS)
        yield from updated(step)


@pytest.mark.parametrize("changes", [{}, {"supervision.preset": "paper"}], ids=["nothing said", "paper"])
def test_a_paper_step_is_the_formulas_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    recipe = tiny_recipe(tmp_path, {"training.gradient_checkpointing": False, **changes})
    ours = list(made(recipe))
    plain = list(written(recipe, monkeypatch))
    assert len(ours) == len(plain) > 2 * len(TERMS)
    assert all(map(torch.equal, ours, plain))
