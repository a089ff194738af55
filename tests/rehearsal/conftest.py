"""What tests of rehearsals share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel

from tests.support.models import clip_config, write_llm
from tests.support.peaks import SIZES
from tests.support.shapes import write_image_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a model with a few million weights and 64 tokens an image."""
    root = tmp_path_factory.mktemp("rehearsal")
    write_llm(root / "llm", vocab_size=4096, num_key_value_heads=4, **SIZES)
    torch.manual_seed(0)
    CLIPVisionModel(clip_config(hidden_size=64, image_size=64)).save_pretrained(root / "vision")
    write_image_processor(root / "vision", size=64)
    return root
