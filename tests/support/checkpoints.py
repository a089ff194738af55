"""A run's training state, restored into the run's own optimizer, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from basic_lite.model.adapt import adapt
from basic_lite.model.load import load_base
from basic_lite.training.assembly import make_step
from basic_lite.training.bundle_files import open_bundle
from basic_lite.training.checkpoint import read_progress, restore_training_state
from basic_lite.training.processes import ALONE
from basic_lite.training.step import TrainStep
from tests.support.runs import tiny_recipe


class Restoring:
    """Restores checkpoints of one recipe; each into a new optimizer of the same model."""

    def __init__(self, place: Path, changes: dict[str, Any]) -> None:
        """
        Args:
            changes: the recipe's, with ``training.max_steps``.
        """
        self.recipe = tiny_recipe(place, changes)
        self.loaded = load_base(self.recipe, torch.device("cpu"))
        adapt(self.loaded.parts, self.recipe)

    def new_step(self) -> TrainStep:
        """The step of a run that starts."""
        steps = self.recipe.training.max_steps
        return make_step(self.recipe, self.loaded, None, torch.device("cpu"), steps=steps)

    def __call__(self, checkpoint: Path) -> TrainStep:
        """The step of a run that continues from a checkpoint; its weights aren't restored."""
        step, bundle = self.new_step(), open_bundle(checkpoint)
        progress = read_progress(bundle, int(self.recipe.training.max_steps or 0))
        assert step.optimizer is not None
        restore_training_state(bundle, progress, step.optimizer, step.scheduler, torch.device("cpu"), ALONE)
        return step
