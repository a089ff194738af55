"""A recipe's step with a clock around BASIC's operations."""

from collections.abc import Callable

import torch

from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.training.assembly import make_step, supervise
from basic_lite.training.breakdown import Breakdown
from basic_lite.training.step import TrainStep


def timed_by(breakdown: Breakdown) -> Callable[[Recipe, Loaded, Supervision | None, torch.device], TrainStep]:
    """Makes a recipe's step as ``make_step`` does, its BASIC operations timed by ``breakdown``."""

    def make(recipe: Recipe, loaded: Loaded, supervision: Supervision | None, device: torch.device) -> TrainStep:
        watched = supervise(recipe, loaded, lambda text: None, breakdown.operations) if supervision else None
        return make_step(recipe, loaded, watched, device)

    return make
