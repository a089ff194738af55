"""Optimizer steps of a tiny model, number by number: what doesn't change the result must not change a bit of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from basic_lite.console import speaker
from basic_lite.data.prepare import prepare_data
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import load_for_training, make_step, supervise
from basic_lite.training.step import StepCounts
from tests.support.runs import quiet

CPU = torch.device("cpu")


def load_tiny(recipe: Recipe) -> Loaded:
    """A recipe's model on the CPU, its fresh weights always the same."""
    torch.manual_seed(3)
    return load_for_training(recipe, CPU, load_frontend(recipe.model), lambda text: None)


def two_steps(recipe: Recipe, loaded: Loaded | None = None) -> Iterator[Tensor]:
    """Losses and gradients of two optimizer steps of two micro-batches, then the weights."""
    loaded = loaded or load_tiny(recipe)
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    supervision = supervise(recipe, loaded, speaker(quiet()))
    step = make_step(recipe, loaded, supervision, CPU)
    counts = StepCounts(labelled_tokens=12, samples_with_image=4, tokens=0)
    torch.manual_seed(4)  # of dropout
    for number in range(2):
        for first in (4 * number, 4 * number + 2):
            batch = data.collator([data.train[i % 8] for i in (first, first + 1)])
            loss = step.loss(batch, counts, (1.0, 1.0)).loss
            yield loss.detach()
            loss.backward()
        yield from (p.grad.clone() for p in step.trainable if p.grad is not None)
        step.update()
    yield from step.trainable
