"""Image processors: the PIL version of whatever a checkpoint has, and messages where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from basic_lite.errors import UserError
from basic_lite.model.frontend import load_image_processor
from tests.support.data import processor


def test_load_image_processor(tmp_path: Path) -> None:
    processor(16).save_pretrained(tmp_path / "clip")
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "siglip")
    assert type(load_image_processor(tmp_path / "clip")) is CLIPImageProcessorPil
    assert type(load_image_processor(str(tmp_path / "siglip"))) is SiglipImageProcessorPil
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "preprocessor_config.json").write_text("{")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    for name in ["none", "broken", "odd", "not/there/at/all"]:
        with pytest.raises(UserError, match=r"model\.vision: (can't read the image processor|there is no folder)"):
            load_image_processor(tmp_path / name)
