"""An exported folder holds what was trained: plain transformers opens it and computes the run's own logits."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, LlavaForConditionalGeneration

from basic_lite.tools.export.card import _use
from basic_lite.tools.export.command import export
from basic_lite.tools.export.folder import open_source
from basic_lite.tools.export.samples import choose_samples
from basic_lite.tools.export.tensors import SHARD_BYTES, Planned, shards_of, write_shards
from basic_lite.training.bundle import load_trained
from tests.support.bundles import CPU, random_run
from tests.support.marks import rest_long
from tests.support.models import LLM_KINDS, write_llava, write_llm, write_vision
from tests.support.runs import quiet, whole_recipe, write_data


def exported(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export, and read what the command says of it."""
    options = {"samples": 2, **options}
    passed = export(run, out, console=quiet(), **options)
    report: dict[str, Any] = json.loads((out / "export.json").read_text())
    assert report["check"] is None or report["check"]["passed"] == passed
    return report


def logits_of(model: Any) -> torch.Tensor:
    """Logits of a fixed text with a fixed picture."""
    image = model.config.image_token_id
    ids = torch.tensor([[4, 5, image, image, image, image, 6, 7, 8, 9]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits  # type: ignore[no-any-return]


def assert_same_model(run: Path, out: Path, *, atol: float = 2e-5) -> None:
    """transformers reads all tensors and nothing else, and its logits are the run's."""
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    assert type(model) is LlavaForConditionalGeneration
    ours, _ = load_trained(run, CPU)
    torch.testing.assert_close(logits_of(model), logits_of(ours.model), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", rest_long("gemma3", *LLM_KINDS))
def test_every_family(tmp_path: Path, kind: str) -> None:
    run, out = random_run(tmp_path, kind=kind), tmp_path / "out"
    report = exported(run, out)
    check = report["check"]
    assert check["passed"] and check["same_ids"] == check["same_pixels"] == check["same_answers"] == 2
    assert check["drift"]["quantized"]["kl"] < 1e-9 < 1e-5 < check["drift"]["original"]["kl"]
    assert_same_model(run, out)
    text = json.loads((out / "config.json").read_text())["text_config"]
    assert text["architectures"] == [type(AutoModelForCausalLM.from_pretrained(tmp_path / "llm")).__name__]
    rope = text["rope_parameters"]
    assert text["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert text["vocab_size"] == 64  # the table grew for the image token


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"data.image_fit": "square"}, marks=pytest.mark.long),
        {"data.template": "v1"},
        pytest.param({"data.template": "plain", "stage": 1, "lora.enabled": False}, marks=pytest.mark.long),
        {"quantization.mode": "none"},
        pytest.param({"quantization.double": False}, marks=pytest.mark.long),
        pytest.param({"model.vision_feature_layer": -1, "model.vision_feature_select": "full"}, marks=pytest.mark.long),
        pytest.param({"lora.targets": ["q_proj", "down_proj"]}, marks=pytest.mark.long),
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_kind_of_recipe(tmp_path: Path, changes: dict[str, Any]) -> None:
    run, out = random_run(tmp_path, changes), tmp_path / "out"
    check = exported(run, out)["check"]
    assert check["passed"] and check["same_ids"] == check["same_pixels"] == check["same_answers"] == 2
    assert set(check["drift"]) == ({"original"} if "quantization.mode" in changes else {"quantized", "original"})


@pytest.mark.parametrize("kind", rest_long("siglip", "clip_full"))
@pytest.mark.parametrize("fit", rest_long("square", "pad"))
def test_every_kind_of_tower(tmp_path: Path, kind: str, fit: str) -> None:
    recipe_of_llm = whole_recipe(tmp_path)
    assert recipe_of_llm.model.llm
    shutil.rmtree(tmp_path / "vision")
    write_vision(tmp_path / "vision", kind)
    run, out = random_run(tmp_path, {"data.image_fit": fit}), tmp_path / "out"
    check = exported(run, out)["check"]
    assert check["passed"] and check["same_ids"] == check["same_pixels"] == check["same_answers"] == 2
    assert_same_model(run, out)


# Names that transformers 5 writes → those that llava-hf published, and those that its classes have.
NAMINGS = {
    "written": {},
    "published": {"vision_tower.": "vision_tower.vision_model."},
    "classes": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal": "model.multi_modal",
    },
}


@pytest.mark.parametrize("naming", rest_long(*NAMINGS))
def test_a_llava_checkpoint_as_the_base(tmp_path: Path, naming: str) -> None:
    write_llava(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    state = load_file(path)
    for written, other in NAMINGS[naming].items():
        state = {other + name[len(written) :] if name.startswith(written) else name: t for name, t in state.items()}
    save_file(state, path, {"format": "pt"})
    run, out = random_run(tmp_path, {"model": {"base": str(tmp_path / "base")}}), tmp_path / "out"
    assert exported(run, out)["check"]["passed"]
    assert_same_model(run, out)


def test_weights_in_pytorchs_own_format(tmp_path: Path) -> None:
    run = random_run(tmp_path)
    for folder in (tmp_path / "llm", tmp_path / "vision"):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    exported(run, tmp_path / "out", samples=0)
    assert_same_model(run, tmp_path / "out")


@pytest.mark.long
def test_tied_tables_are_written_once(tmp_path: Path) -> None:
    write_llm(tmp_path / "llm", tie_word_embeddings=True)
    write_vision(tmp_path / "vision")
    run, out = random_run(tmp_path), tmp_path / "out"
    assert exported(run, out)["check"]["passed"]
    assert "language_model.lm_head.weight" not in load_file(out / "model.safetensors")
    assert_same_model(run, out)


def test_the_original_weights_with_lora_added(tmp_path: Path) -> None:
    """Against the sum, by hand in float64."""
    run, out = random_run(tmp_path), tmp_path / "out"
    report = exported(run, out, merge_into="original", limit=100.0)
    assert report["merged_into"] == "original" and report["check"]["drift"]["original"]["kl"] > 1e-5
    base = load_file(tmp_path / "llm" / "model.safetensors")
    lora = load_file(run / "final" / "adapter" / "adapter_model.safetensors")
    written = load_file(out / "model.safetensors")
    for layer in (0, 3):
        name = f"layers.{layer}.self_attn.q_proj"
        a, b = (lora[f"base_model.model.model.language_model.{name}.lora_{x}.weight"].double() for x in "AB")
        expected = base[f"model.{name}.weight"].double() + 2.0 * b @ a  # alpha 8, rank 4
        torch.testing.assert_close(written[f"language_model.model.{name}.weight"].double(), expected, rtol=0, atol=1e-6)
    norm = "layers.1.input_layernorm.weight"
    assert torch.equal(written[f"language_model.model.{norm}"], base[f"model.{norm}"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("double", [True, False])
def test_the_quantised_weights_are_bitsandbytes_own(tmp_path: Path, dtype: str, double: bool) -> None:
    """Before LoRA is added, against what ``Linear4bit`` of the run's model holds."""
    changes = {"model.dtype": dtype, "quantization.double": double}
    run = random_run(tmp_path, changes)
    merge = open_source(run, None, "float32", CPU).merge.without_lora()
    loaded, _ = load_trained(run, CPU)
    for number, layer in enumerate(loaded.parts.layers):
        held = layer.self_attn.q_proj.base_layer.weight
        expected = bnb.dequantize_4bit(held.data, held.quant_state).float()
        assert expected.dtype != held.dtype and len(expected.unique()) > 16
        assert torch.equal(merge.tensor(f"language_model.model.layers.{number}.self_attn.q_proj.weight"), expected)


def test_the_loss_is_transformers_own(tmp_path: Path) -> None:
    """Of the exported folder, on the samples that the check took; another picture gives another loss."""
    run, out = random_run(tmp_path), tmp_path / "out"
    check = exported(run, out, samples=5)["check"]
    samples = choose_samples(open_source(run, None, "auto", CPU), 5)
    model = AutoModelForImageTextToText.from_pretrained(out)
    total, count = 0.0, 0
    for sample in samples:
        labels = torch.full((1, len(sample.ids)), -100)
        labels[0, sample.rows + 1] = torch.tensor(sample.ids)[sample.rows + 1]
        given = {"input_ids": torch.tensor([sample.ids]), "pixel_values": sample.pixel_values}
        with torch.no_grad():
            total += model(**given, labels=labels).loss.item() * len(sample.rows)
        count += len(sample.rows)
    assert count == check["tokens"]
    assert check["lm_loss"] == pytest.approx(total / count, abs=1e-5)
    assert abs(check["lm_loss_other_image"] - check["lm_loss"]) > 1e-6


@pytest.mark.parametrize("name", rest_long("bfloat16", "float16"))
def test_half_precision_keeps_the_projector(tmp_path: Path, name: str) -> None:
    run, out = random_run(tmp_path), tmp_path / "out"
    assert exported(run, out, dtype=name)["dtype"] == name
    written = load_file(out / "model.safetensors")
    trained = load_file(run / "final" / "projector.safetensors")
    assert torch.equal(written["multi_modal_projector.linear_1.weight"], trained["linear_1.weight"])
    kinds = {tensor.dtype for key, tensor in written.items() if "multi_modal" not in key}
    assert kinds == {getattr(torch, name)}


@pytest.mark.long
def test_a_stranger_opens_it(tmp_path: Path) -> None:
    """In a process that can't import basic_lite, by transformers' own classes and its pipeline."""
    write_data(tmp_path)
    run, out = random_run(tmp_path), tmp_path / "out"
    answers = exported(run, out)["check"]["answers"]
    script = f"""
import json, sys
sys.modules["basic_lite"] = sys.modules["basic_lite_kernels"] = None  # an import of either raises
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
model = AutoModelForImageTextToText.from_pretrained({str(out)!r})
processor = AutoProcessor.from_pretrained({str(out)!r})
ask = pipeline("image-text-to-text", model={str(out)!r})
said = []
for n in (0, 6):
    question = "what colour is it ? " + "there " * (n % 4)
    picture = {{"type": "image", "path": {str(tmp_path)!r} + f"/images/{{n}}.png"}}
    content = [picture, {{"type": "text", "text": question}}]
    messages = [{{"role": "user", "content": content}}]
    given = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**given, max_new_tokens=11)[0, given["input_ids"].shape[1]:]
    text = processor.decode(out, skip_special_tokens=True).strip()
    piped = ask(text=messages, max_new_tokens=11, return_full_text=False)[0]["generated_text"].strip()
    assert piped == text, (piped, text)
    said.append(text)
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [one["export"] for one in answers]
    assert [one["run"] for one in answers] == [one["export"] for one in answers]


def test_large_models_come_in_several_files(tmp_path: Path) -> None:
    plan = [Planned(f"t{n}", (3, n + 1), torch.float32) for n in range(6)]
    assert [[one.name for one in shard] for shard in shards_of(plan, 60)] == [
        ["t0", "t1"],
        ["t2"],
        ["t3"],
        ["t4"],
        ["t5"],
    ]
    assert SHARD_BYTES >= 2**28
    tensors = {one.name: torch.randn(one.shape) for one in plan}
    done: list[int] = []
    write_shards(tmp_path, plan, tensors.__getitem__, done.append, most_bytes=60)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(done) == sum(one.size_bytes for one in plan)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert len(set(index["weight_map"].values())) == 5 == len(list(tmp_path.glob("*.safetensors")))


@pytest.mark.parametrize("around", rest_long("<s> $A </s>", "$A </s>", "<pad> $A"))
@pytest.mark.parametrize("template", ["tokenizer", "v1"])
def test_what_a_tokenizer_puts_around_texts_is_in_no_prompt(tmp_path: Path, around: str, template: str) -> None:
    """Of an end token, or of a start token that it doesn't name, transformers' processors know nothing."""
    write_vision(tmp_path / "vision")
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path / "llm"))
    added = [(word, tokenizer.convert_tokens_to_ids(word)) for word in around.split() if word != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=added)
    tokenizer.save_pretrained(tmp_path / "llm")
    run, out = random_run(tmp_path, {"data.template": template}), tmp_path / "out"
    check = exported(run, out)["check"]
    assert check["passed"] and check["same_ids"] == check["same_answers"] == 2


def test_the_card_gives_code_that_runs_whatever_the_name() -> None:
    name = """my "é" model's"""
    use = _use(name)
    code = re.search(r"```python\n(.*?)```", use, re.DOTALL)
    assert code and any(one.value == name for one in ast.walk(ast.parse(code[1])) if isinstance(one, ast.Constant))
    assert shlex.split(use.rsplit("```bash\n", 1)[1].splitlines()[0]) == ["vllm", "serve", name]
