"""Composing and opening models: what is quantised, what is trained, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3_5TextConfig,
)

from basic_lite.errors import UserError
from basic_lite.model.adapt import adapt, lora_parameters
from basic_lite.model.audit import audit, check_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.kinds import kind_in_name
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import Recipe
from basic_lite.training.gradients import gradient_faults
from tests.support.models import LLM_KINDS, clip_config, text_config, write_llava, write_llm, write_vision

CPU = torch.device("cpu")


def recipe_for(model: dict[str, Any], **sections: Any) -> Recipe:
    sections.setdefault("training", {"gradient_checkpointing": True})
    return Recipe.model_validate(
        {"name": "t", "stage": 2, "model": model, "data": {"train": {"path": "x.json"}}, **sections}
    )


def composed(tmp_path: Path, kind: str = "llama", vision: str = "clip", **sections: Any) -> tuple[Recipe, Loaded]:
    model = {"llm": str(write_llm(tmp_path / "llm", kind)), "vision": str(write_vision(tmp_path / "vision", vision))}
    recipe = recipe_for(model, **sections)
    return recipe, load_base(recipe, CPU)


def a_batch(loaded: Loaded) -> dict[str, torch.Tensor]:
    image, n = loaded.parts.image_token_id, loaded.frontend.tokens_per_image
    torch.manual_seed(1)
    ids = torch.randint(4, 30, (2, 12 + n))
    ids[:, 2 : 2 + n] = image
    labels = ids.clone()
    labels[:, : 6 + n] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(2, 3, 16, 16),
    }


@pytest.mark.parametrize("kind", LLM_KINDS)
def test_every_family_is_composed_quantised_and_trainable(tmp_path: Path, kind: str) -> None:
    recipe, loaded = composed(tmp_path, kind, lora={"enabled": True, "rank": 4})
    adapt(loaded.parts, recipe)
    table = audit(loaded.parts)
    check_parts(table, recipe, torch.float32)
    assert isinstance(loaded.model, LlavaForConditionalGeneration)
    dtypes = {part.part: part.dtype for part in table}
    assert (
        dtypes["LLM linears"] == "nf4 double"
        and dtypes["vision tower"] == "float32"
        and dtypes["projector"] == "float32"
    )
    assert {p.part for p in table if p.trainable} == {"projector", "LoRA"}

    loaded.model.train()
    loaded.model(**a_batch(loaded)).loss.backward()
    assert gradient_faults(loaded.parts) == []
    assert all(p.grad is None for p in loaded.parts.vision_tower.parameters())


@pytest.mark.parametrize("vision", ["clip_full", "siglip"])
def test_vision_encoders(tmp_path: Path, vision: str) -> None:
    _, loaded = composed(tmp_path, vision=vision)
    assert loaded.frontend.tokens_per_image == 4  # SigLIP has no class token to drop
    assert torch.isfinite(loaded.model(**a_batch(loaded)).loss)


def test_the_frozen_tower_keeps_no_graph(tmp_path: Path) -> None:
    _, loaded = composed(tmp_path)
    tower, batch = loaded.parts.vision_tower, a_batch(loaded)
    pictures = batch["pixel_values"].requires_grad_(True)
    assert not tower(pictures).last_hidden_state.requires_grad
    with pytest.raises(RuntimeError):
        tower(pictures[:, :1])
    assert torch.is_grad_enabled()


def test_composed_text_logits_are_the_llms_own(tmp_path: Path) -> None:
    _, loaded = composed(tmp_path, quantization={"mode": "none"})
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    ids = torch.tensor([[1, 5, 9, 11, 7]])
    ours = loaded.model(input_ids=ids).logits[..., : llm.config.vocab_size]
    assert torch.equal(ours, llm(input_ids=ids).logits)
    assert loaded.parts.image_token_id == llm.config.vocab_size  # the first free row
    assert loaded.parts.image_token_id not in loaded.vocabulary_ids
    assert len(loaded.vocabulary_ids) == llm.config.vocab_size


def test_lm_loss_is_transformers_own(tmp_path: Path) -> None:
    _, loaded = composed(tmp_path)
    batch = a_batch(loaded)
    ours = loaded.model(**batch).loss
    theirs = LlavaForConditionalGeneration.forward(loaded.model, **batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    counted = loaded.model(**batch, num_items_in_batch=torch.tensor(50)).loss
    expected = LlavaForConditionalGeneration.forward(loaded.model, **batch, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(counted, expected, rtol=1e-6, atol=0)


def test_lm_loss_in_chunks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, loaded = composed(tmp_path)
    adapt(loaded.parts, recipe)
    gradients = []
    for chunk_bytes in (2**28, 4 * 64 * 3):
        monkeypatch.setattr("basic_lite.model.llava.CHUNK_BYTES", chunk_bytes)
        loaded.model.zero_grad()
        loss = loaded.model(**a_batch(loaded)).loss
        loss.backward()
        gradients.append((loss.detach(), loaded.parts.projector.linear_1.weight.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)


def test_projector_stays_float32_under_autocast(tmp_path: Path) -> None:
    recipe, loaded = composed(tmp_path)
    adapt(loaded.parts, recipe)
    seen = []
    loaded.parts.projector.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loaded.model(**a_batch(loaded)).loss.backward()
    assert seen == [torch.float32]
    assert loaded.parts.projector.linear_1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("mode", ["nf4", "none"])
def test_llava_checkpoint_in_the_published_layout(tmp_path: Path, mode: str) -> None:
    folder = write_llava(tmp_path / "llava")
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        # What llava-hf's 7B has: the LLM under language_model.model, the head beside it.
        assert "language_model.model.layers.0.self_attn.q_proj.weight" in tensors.keys()  # noqa: SIM118
    recipe = recipe_for({"base": str(folder)}, quantization={"mode": mode}, lora={"enabled": True, "rank": 2})
    loaded = load_base(recipe, CPU)
    adapt(loaded.parts, recipe)
    check_parts(audit(loaded.parts), recipe, torch.float32)
    if mode == "none":
        theirs = LlavaForConditionalGeneration.from_pretrained(folder)
        batch = a_batch(loaded)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(**batch).loss, theirs(**batch).loss, rtol=1e-6, atol=0)


def test_projector_of_a_checkpoint_is_read_unrounded(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava")
    loaded = load_base(recipe_for({"base": str(folder), "dtype": "bfloat16"}), CPU)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder)
    expected = theirs.model.multi_modal_projector.linear_1.weight
    assert torch.equal(loaded.parts.projector.linear_1.weight, expected)
    assert loaded.parts.vision_tower.dtype == torch.bfloat16


def test_evaluation_leaves_4bit_weights_as_they_are(tmp_path: Path) -> None:
    recipe, loaded = composed(tmp_path)
    adapt(loaded.parts, recipe)
    linear = loaded.parts.layers[0].self_attn.q_proj
    before = linear.weight.data.clone()
    loaded.model.eval()
    with torch.no_grad():
        loaded.model(**a_batch(loaded))
    assert torch.equal(linear.weight.data, before)
    loaded.model.train()
    loaded.model(**a_batch(loaded)).loss.backward()


def test_part_table_finds_a_quantised_head_and_a_frozen_projector(tmp_path: Path) -> None:
    recipe, loaded = composed(tmp_path)
    adapt(loaded.parts, recipe)
    loaded.parts.projector.requires_grad_(False)
    with pytest.raises(UserError, match=r"projector .* trainable, expected all"):
        check_parts(audit(loaded.parts), recipe, torch.float32)
    adapt(loaded.parts, recipe)
    loaded.model.lm_head = loaded.parts.layers[0].self_attn.q_proj  # an NF4 layer in the head's place
    with pytest.raises(UserError, match=r"LLM linears|head"):
        check_parts(
            audit(find_parts(loaded.model)),
            recipe_for(recipe.model.model_dump(), lora={"enabled": True}),
            torch.float32,
        )


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_porj"])
def test_wrong_lora_targets_are_refused(tmp_path: Path, target: str) -> None:
    recipe, loaded = composed(tmp_path)
    lora = recipe.lora.model_copy(update={"enabled": True, "targets": ["q_proj", target]})
    with pytest.raises(UserError, match=rf"lora.targets names {target}"):
        adapt(loaded.parts, recipe.model_copy(update={"lora": lora}))


def test_lora_targets_by_name(tmp_path: Path) -> None:
    recipe, loaded = composed(
        tmp_path, lora={"enabled": True, "rank": 2, "targets": ["q_proj", "v_proj"], "dtype": "bfloat16"}
    )
    adapt(loaded.parts, recipe)
    names = lora_parameters(loaded.model)
    assert len(names) == 4 * 2 * 2
    assert all(".q_proj." in name or ".v_proj." in name for name in names)
    assert all(p.dtype == torch.bfloat16 for p in names.values())


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "gemma3", "internvl", "llava_next", "smolvlm"])
def test_families_that_readme_leaves_out_are_refused_by_their_configuration(tmp_path: Path, kind: str) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"model.base: .* is a {kind} checkpoint, not LLaVA"):
        load_frontend(recipe_for({"base": str(tmp_path)}).model)


def test_of_a_model_on_the_hub_the_configuration_is_fetched_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"configuration no-such/model .*\n  fix: unset HF_HUB_OFFLINE"):
        load_frontend(recipe_for({"base": "no-such/model"}).model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "a Qwen-VL"),
        ("Qwen/Qwen3-VL-4B", "a Qwen-VL"),
        ("Qwen/Qwen-VL-Chat", "a Qwen-VL"),
        ("OpenGVLab/InternVL3-8B", "an InternVL"),
        ("HuggingFaceM4/idefics2-8b", "an Idefics"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "a LLaVA-NeXT"),
        ("google/gemma-3-4b-it", "a Gemma 3"),
    ],
)
@pytest.mark.parametrize("key", ["base", "vision", "llm"])
def test_without_a_network_the_name_tells_the_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: str, key: str
) -> None:
    """The sentence is that of a configuration which could be read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    vision = (
        {"vision": str(write_vision(tmp_path / "v"))} if key == "llm" else {"llm": "x/y"} if key == "vision" else {}
    )
    says = {"base": "not LLaVA in the", "vision": "not CLIP or SigLIP", "llm": "which already has a vision part"}[key]
    with pytest.raises(UserError, match=rf"^model.{key}: {name} is {kind} checkpoint \(by its name; .*\), {says}"):
        load_frontend(recipe_for({key: name, **vision}).model)


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-1b-it", "llava-hf/llava-1.5-7b-hf", "internvl", "runs/a/qwen2-vl",
     "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384", "lmsys/vicuna-7b-v1.5", "a" * 300 + "/b"],
)  # fmt: skip
def test_a_name_of_another_kind_says_nothing(name: str) -> None:
    assert kind_in_name(name) is None


def test_a_folder_that_is_here_is_no_owner_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert kind_in_name("models/qwen2-vl") is None and kind_in_name("others/qwen2-vl") is not None


def test_wrong_checkpoints_are_named(tmp_path: Path) -> None:
    llm, vision = str(write_llm(tmp_path / "llm")), str(write_vision(tmp_path / "vision"))
    llava = str(write_llava(tmp_path / "llava"))
    bare = str(write_llava(tmp_path / "bare", image_token=False))
    for model, message in (
        ({"llm": vision, "vision": vision}, "model.llm: .* is a clip_vision_model checkpoint"),
        ({"llm": llava, "vision": vision}, "model.llm: .* belongs in model.base"),
        ({"llm": llm, "vision": llm}, "model.vision: .* is a llama checkpoint, not CLIP or SigLIP"),
        ({"base": llm}, "model.base: .* is a llama checkpoint, not LLaVA"),
        ({"base": str(tmp_path / "nowhere")}, "model.base: there is no folder"),
        ({"base": bare}, "has no token '<image>'"),
        ({"llm": llm, "vision": vision, "vision_feature_layer": -9}, "model.vision_feature_layer is -9"),
    ):
        with pytest.raises(UserError, match=message):
            load_base(recipe_for(model), CPU)


def test_a_checkpoint_without_its_weights_is_refused(tmp_path: Path) -> None:
    llm = write_llm(tmp_path / "llm")
    state = load_file(llm / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, llm / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the weights .*layers\.1\.mlp\.up_proj"):
        load_base(recipe_for({"llm": str(llm), "vision": str(write_vision(tmp_path / "v"))}), CPU)


def test_gradient_faults_are_named(tmp_path: Path) -> None:
    recipe, loaded = composed(tmp_path, lora={"enabled": True, "rank": 2})
    adapt(loaded.parts, recipe)
    assert len(gradient_faults(loaded.parts)) == 2 + 4 * 7  # nothing ran: both projector layers, LoRA on 4 × 7 linears
    loaded.model(**a_batch(loaded)).loss.backward()
    assert gradient_faults(loaded.parts) == []
    loaded.parts.projector.linear_2.weight.grad.fill_(float("nan"))
    for name, parameter in lora_parameters(loaded.model).items():
        if "layers.3.self_attn.q_proj." in name:
            parameter.grad.zero_()
    assert gradient_faults(loaded.parts) == [
        "projector linear_2: the gradient is not finite",
        "LoRA on layers.3.self_attn.q_proj: the gradient is zero everywhere",
    ]


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (text_config("mixtral", 64), "MixtralTopKRouter, MixtralExperts"),
        (Qwen3_5TextConfig(vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=4), "Conv1d"),
    ],
)
@pytest.mark.parametrize("key", ["llm", "base"])
def test_weights_that_would_stay_unquantised_are_refused_by_the_configuration(
    key: str, config: Any, kinds: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path / "llm")
    LlavaConfig(vision_config=clip_config(), text_config=config).save_pretrained(tmp_path / "base")
    vision = {} if key == "base" else {"vision": str(write_vision(tmp_path / "vision"))}
    with pytest.raises(UserError, match=rf"^model\.{key}: .* outside of linear layers \({kinds}\), .* Choose a Llama-"):
        load_frontend(recipe_for({key: str(tmp_path / key), **vision}).model)


@pytest.mark.parametrize("damage", ["cut", "garbage", "config", "no decoder"])
def test_damaged_and_foreign_checkpoints_are_named(tmp_path: Path, damage: str) -> None:
    llm, vision = write_llm(tmp_path / "llm"), write_vision(tmp_path / "vision")
    weights = llm / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "garbage":
        weights.write_bytes(b"nothing of the kind" * 100)
    elif damage == "config":
        (llm / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    else:
        GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64)).save_pretrained(llm)
    with pytest.raises(UserError, match=r"model\.llm"):
        load_base(recipe_for({"llm": str(llm), "vision": str(vision)}), CPU)
