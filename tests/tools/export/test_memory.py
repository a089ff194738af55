"""An export needs the memory of one shard and of one weight, however deep the model is."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from basic_lite.recipe.schema import Recipe
from basic_lite.sizes import MIB
from basic_lite.tools.export.tensors import Checkpoint, Planned, write_shards
from basic_lite.training.files import sha256, write_json
from tests.support.bundles import facts
from tests.support.models import write_vision
from tests.support.runs import whole_recipe
from tests.support.shapes import SIZES, write_llm_shape

SIZE = SIZES["7b"]
RANK = 128
LIMIT_GIB = 2.5  # asked were 6
LINEARS = {
    "self_attn.q_proj": (SIZE.hidden, SIZE.hidden),
    "self_attn.k_proj": (SIZE.hidden, SIZE.hidden),
    "self_attn.v_proj": (SIZE.hidden, SIZE.hidden),
    "self_attn.o_proj": (SIZE.hidden, SIZE.hidden),
    "mlp.gate_proj": (SIZE.mlp, SIZE.hidden),
    "mlp.up_proj": (SIZE.mlp, SIZE.hidden),
    "mlp.down_proj": (SIZE.hidden, SIZE.mlp),
}
SCRIPT = """
import sys, torch
from pathlib import Path
from basic_lite.tools.export.folder import open_source, write_settings, write_weights
from basic_lite.model.device import peak_memory_gib
bundle, out, into = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
out.mkdir()
source = open_source(bundle, into, "auto", torch.device("cpu"))
write_settings(out, source)
write_weights(out, source)
print(peak_memory_gib(torch.device("cpu")))
"""


def write_synthetic_llm(folder: Path, layers: int) -> None:
    """A Llama of 7B's width in bf16; a file for each layer, as large checkpoints come in several."""
    write_llm_shape(folder, SIZE)
    config = LlamaConfig.from_pretrained(folder)
    config.num_hidden_layers = layers
    config.save_pretrained(folder)
    places: dict[str, str] = {}

    def save(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(tensors, file))

    table = (SIZE.vocabulary, SIZE.hidden)
    save(
        "rest.safetensors",
        {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": table[1:]},
    )
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (SIZE.hidden,))
    for layer in range(layers):
        shapes = {f"model.layers.{layer}.{name}.weight": shape for name, shape in (LINEARS | norms).items()}
        save(f"layer-{layer}.safetensors", shapes)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write_synthetic_bundle(folder: Path, recipe: Recipe, layers: int, vision_size: int) -> None:
    (folder / "adapter").mkdir(parents=True)
    adapter = {
        f"base_model.model.model.language_model.layers.{layer}.{name}.lora_{factor}.weight": torch.full(shape, 0.01)
        for layer in range(layers)
        for name, (rows, columns) in LINEARS.items()
        for factor, shape in {"A": (RANK, columns), "B": (rows, RANK)}.items()
    }
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    shapes = {"linear_1": (SIZE.hidden, vision_size), "linear_2": (SIZE.hidden, SIZE.hidden)}
    projector = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    projector |= {f"{name}.bias": torch.zeros(SIZE.hidden) for name in shapes}
    save_file(projector, folder / "projector.safetensors")
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = {"format": 1, "stage": recipe.stage, **facts(), "models": {}, "model_facts": {}, "files": files}
    manifest["machine"] = {"dtype": "torch.bfloat16"}
    write_json(folder / "manifest.json", manifest)


@pytest.mark.soak
@pytest.mark.parametrize(("layers", "into"), [(2, "quantized"), (32, "original")])
def test_a_7b_export_takes_the_memory_of_a_shard(tmp_path: Path, layers: int, into: str) -> None:
    write_synthetic_llm(tmp_path / "llm", layers)
    write_vision(tmp_path / "vision")
    recipe = whole_recipe(tmp_path, {"data.template": "v1", "lora.rank": RANK, "lora.alpha": 256.0})
    write_synthetic_bundle(tmp_path / "bundle", recipe, layers, vision_size=32)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "bundle"), str(tmp_path / "out"), into]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak_gib = float(done.stdout.splitlines()[-1])
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and len(index["weight_map"]) > 9 * layers
    print(f"{layers} layers, {into}: peak {peak_gib:.2f} GiB, {len(files)} files")
    assert peak_gib < LIMIT_GIB


def test_memory_is_that_of_a_shard_and_a_weight(tmp_path: Path) -> None:
    """The formula of ``write_weights``, on a deep model of small weights: 64 of 1 MiB in files of 4 MiB."""
    plan = [Planned(f"t{n}", (512, 512), torch.float32) for n in range(64)]
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def make(name: str) -> torch.Tensor:
        nonlocal most
        tensor = torch.full((512, 512), 0.5)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in alive))
        return tensor

    write_shards(tmp_path, plan, make, most_bytes=4 * MIB)
    assert len(list(tmp_path.glob("*.safetensors"))) == 16
    assert 2 <= most <= 5


def test_a_weight_is_in_memory_when_it_is_merged_and_not_before(tmp_path: Path) -> None:
    """A checkpoint's tensor has memory of its own, and its file is closed: mapped pages would count as ours."""
    save_file({"a": torch.zeros(8 * MIB), "b": torch.ones(4)}, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint(str(tmp_path), "model.llm")
    before = psutil.Process().memory_info().rss
    found = checkpoint.read("b")
    assert psutil.Process().memory_info().rss - before < 8 * MIB and torch.equal(found, torch.ones(4))
    assert not [file for file in psutil.Process().memory_maps() if str(tmp_path) in file.path]
