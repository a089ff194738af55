"""LLMs and image processors that aren't those of the recipes: what was trained with them can be exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    StableLmConfig,
    Starcoder2Config,
)

from basic_lite.tools.export.command import export
from basic_lite.training.bundle import load_trained
from tests.support.bundles import CPU, random_run
from tests.support.marks import rest_long
from tests.support.models import tiny_tokenizer
from tests.support.runs import quiet, whole_recipe

# Apertus has single numbers among its weights; the others have biases, and norms of two kinds.
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (ApertusConfig, {}),
    (StableLmConfig, {"use_qkv_bias": True}),
    (Starcoder2Config, {}),
]


@pytest.mark.parametrize(("kind", "own"), rest_long(*KINDS))
def test_it_is_exported(kind: Any, own: dict[str, Any], tmp_path: Path) -> None:
    whole_recipe(tmp_path)
    shutil.rmtree(tmp_path / "llm")
    tokenizer = tiny_tokenizer()
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = kind(**size, **own, num_key_value_heads=2, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    run, out = random_run(tmp_path), tmp_path / "out"
    assert export(run, out, samples=2, console=quiet())
    check = json.loads((out / "export.json").read_text())["check"]
    assert check["same_ids"] == check["same_pixels"] == check["same_answers"] == 2
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, load_trained(run, CPU)[0].model(input_ids=ids).logits, rtol=0, atol=2e-5
        )


@pytest.mark.parametrize(
    "settings", rest_long({"image_mean": 0.5, "image_std": 0.25}, {"do_normalize": False, "image_mean": None})
)
@pytest.mark.parametrize("fit", rest_long("pad", "square"))
def test_a_processor_without_a_number_for_each_channel(fit: str, settings: dict[str, Any], tmp_path: Path) -> None:
    whole_recipe(tmp_path)
    path = tmp_path / "vision" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    run, out = random_run(tmp_path, {"data.image_fit": fit}), tmp_path / "out"
    assert export(run, out, samples=3, console=quiet())
    assert json.loads((out / "export.json").read_text())["check"]["same_pixels"] == 3
