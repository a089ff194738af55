"""The models that the chat's tests talk with, and what they show them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.export.command import export
from tests.support.runs import quiet

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def run_speaker(trained: Path) -> RunSpeaker:
    return RunSpeaker(trained, CPU)


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    export(trained, out, samples=0, device="cpu", console=quiet())
    return out


@pytest.fixture(scope="session")
def folder_speaker(exported: Path) -> FolderSpeaker:
    return FolderSpeaker(str(exported), CPU, "auto")


@pytest.fixture(scope="session")
def images(trained: Path) -> Path:
    """Folder of the run's pictures: 0.png is red, 1.png blue, 2.png green."""
    return trained.parent.parent / "images"
