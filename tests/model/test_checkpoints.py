"""Checkpoints as people have them: what is read alike, and what is refused before it has cost hours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import load_base
from basic_lite.training.inputs import require_inputs
from tests.support.models import write_llava, write_llm
from tests.support.runs import whole_recipe

CPU = torch.device("cpu")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def configure(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, {"format": "pt"})


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "zero_point": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("part", ["llm", "vision", "base"])
def test_a_quantised_checkpoint_is_refused_by_its_configuration(part: str, method: str, tmp_path: Path) -> None:
    recipe = whole_recipe(tmp_path)
    section = recipe.model
    if part == "base":
        write_llava(tmp_path / "base")
        section = section.model_copy(update={"base": str(tmp_path / "base"), "llm": None, "vision": None})
    configure(tmp_path / part, quantization_config=QUANTISED[method])
    (tmp_path / part / WEIGHTS).unlink()
    with pytest.raises(UserError) as caught:
        load_frontend(section)
    told = str(caught.value)
    assert told.startswith(f"model.{part}: ") and f"is quantised already ({method}, by its config.json)" in told
    assert "; name the full checkpoint that it was made from" in told


def test_an_empty_quantisation_names_what_to_remove(tmp_path: Path) -> None:
    section = whole_recipe(tmp_path).model
    as_written = (tmp_path / "llm/config.json").read_bytes()
    configure(tmp_path / "llm", quantization_config={})
    with pytest.raises(UserError, match=r"without a quant_method.* remove quantization_config from config\.json"):
        load_frontend(section)
    (tmp_path / "llm/config.json").write_bytes(as_written)
    load_frontend(section)


@pytest.mark.parametrize("mode", ["nf4", "none"])
def test_one_that_bitsandbytes_has_saved_is_refused(mode: str, tmp_path: Path) -> None:
    """Training took it, by its own settings instead of the recipe's, and an export had nothing to merge into."""
    recipe = whole_recipe(tmp_path, {"quantization.mode": mode})
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", quantization_config=quantised, device_map={"": "cpu"})
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(UserError, match=r"model\.llm: .* is quantised already \(bitsandbytes"):
        load_base(recipe, CPU)


def test_weights_of_another_shape_than_the_configurations(tmp_path: Path) -> None:
    """transformers points to a report of its own, which nobody sees."""
    recipe = whole_recipe(tmp_path)
    weigh(tmp_path / "llm", lambda state: state.update({HEAD: state[HEAD][:-1], TABLE: state[TABLE][:-1].clone()}))
    with pytest.raises(UserError) as caught:
        load_base(recipe, CPU)
    told = str(caught.value)
    assert told.startswith(f"model.llm: the weight {HEAD} of {tmp_path / 'llm'} has the shape [42, 64], and ")
    assert "asks for [43, 64]; take configuration and weights of one checkpoint" in told


@pytest.mark.parametrize("rows", [43, 64])
def test_a_head_of_its_own_where_the_configuration_says_it_has_none(rows: int, tmp_path: Path) -> None:
    """With a row for the image token it was trained, and the export refused it."""
    shutil.rmtree(Path(whole_recipe(tmp_path).model.llm or ""))
    write_llm(tmp_path / "llm", vocab_size=rows, tie_word_embeddings=True)
    recipe = whole_recipe(tmp_path, {"quantization.mode": "none"})
    load_base(recipe, CPU)
    weigh(tmp_path / "llm", lambda state: state.update({HEAD: state[TABLE].clone()}))
    load_base(recipe, CPU)
    weigh(tmp_path / "llm", lambda state: state.update({HEAD: state[TABLE] + 1}))
    with pytest.raises(UserError, match=r"model\.llm: .* a head of its own, .*; set that to false"):
        load_base(recipe, CPU)
    configure(tmp_path / "llm", tie_word_embeddings=False)
    load_base(recipe, CPU)


def _sharded(folder: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    llm.save_pretrained(folder, max_shard_size="60KB")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _without_prefix(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({name.removeprefix("model."): one for name, one in state.items()}, folder / WEIGHTS, {"format": "pt"})


def _as_transformers_4_wrote_it(folder: Path) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    for name in ("rope_parameters", "dtype", "head_dim"):
        config.pop(name, None)
    path.write_text(json.dumps(config | {"torch_dtype": "float32", "rope_theta": 10000.0, "rope_scaling": None}))


@pytest.mark.parametrize("change", [_sharded, _pickled, _without_prefix, _as_transformers_4_wrote_it])
def test_the_same_model_in_another_form(change: Callable[[Path], None], tmp_path: Path) -> None:
    recipe = whole_recipe(tmp_path, {"quantization.mode": "none"})
    ids = torch.arange(4, 24)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()(input_ids=ids).logits
    change(tmp_path / "llm")
    logits = load_base(recipe, CPU).model(input_ids=ids).logits
    assert torch.equal(logits[..., : expected.shape[-1]], expected)


def test_a_base_in_pickle_files_alone_is_refused_by_its_folder(tmp_path: Path) -> None:
    """It was refused after its weights had been loaded, and a dry run took it."""
    recipe, base = whole_recipe(tmp_path), tmp_path / "base"
    write_llava(base)
    model = recipe.model.model_copy(update={"base": str(base), "llm": None, "vision": None})
    recipe = recipe.model_copy(update={"model": model})
    require_inputs(recipe)
    _pickled(base)
    with pytest.raises(UserError, match=r"model\.base: the weights of .* are in \.bin files, .* \(save_pretrained\)"):
        require_inputs(recipe)
    (base / "pytorch_model.bin").unlink()
    require_inputs(recipe)  # a dry run needs no weights
