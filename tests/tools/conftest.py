"""A trained run that the tests of the tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.run import train
from tests.support.runs import quiet, tiny_recipe, write_data


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has seen enough steps to answer most of its twelve questions."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder, 12)
    changes = {
        "training.max_steps": 80,
        "training.global_batch": 12,
        "training.micro_batch": 12,
        "training.learning_rate": 1e-2,
        "training.projector_learning_rate": 5e-3,
        "training.gradient_checkpointing": False,
        "training.save_every": 1000,
        "lora.rank": 16,
        "lora.alpha": 32.0,
    }
    return train(tiny_recipe(folder, changes), console=quiet()).folder
