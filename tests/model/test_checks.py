"""Models from outside: what can't be trained on is refused by name, before a step, and says the true reason."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DiffLlamaConfig,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SeedOssConfig,
    SiglipVisionConfig,
)

from basic_lite.errors import UserError
from basic_lite.model import hub
from basic_lite.model.frontend import load_frontend, load_image_processor, load_tokenizer, read_config, tokens_per_image
from basic_lite.model.load import load_base, read_checkpoint
from basic_lite.recipe.schema import ModelSection
from basic_lite.run import train
from basic_lite.training.assembly import check_machine
from tests.support.models import text_config, tiny_tokenizer, write_llava, write_llm, write_vision
from tests.support.runs import quiet, whole_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_llm(folder / "llm")
    write_vision(folder / "vision")
    return folder


def section(folder: Path, **changes: Any) -> ModelSection:
    return ModelSection(**{"llm": str(folder / "llm"), "vision": str(folder / "vision"), **changes})


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def write_kind(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "odd")
    tiny_tokenizer().save_pretrained(folder / "odd")
    return folder / "odd"


COMMON = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        (Gemma2Config, {}, "soft cap of 30 on its logits"),
        (Gemma2Config, {"final_logit_softcapping": None}, "Set model.attention=eager"),
        (
            GptOssConfig,
            {"num_local_experts": 2, "num_experts_per_tok": 1},
            "linear layers (GptOssTopKRouter, GptOssExperts)",
        ),
        (Llama4TextConfig, {"moe_layers": [], "intermediate_size_mlp": 64}, "isn't built as a decoder"),
        (DiffLlamaConfig, {}, "Choose another LLM, or a fixed number in supervision.token_weights"),
    ],
)
def test_an_llm_that_cannot_be_trained_says_why(kind: Any, own: Any, said: str, models_: Path, tmp_path: Path) -> None:
    size = {"vocab_size": len(tiny_tokenizer()), "num_key_value_heads": 2, "pad_token_id": 3}
    llm = write_kind(tmp_path, kind(**COMMON, **size, **own))
    recipe = whole_recipe(tmp_path, {"model.llm": str(llm), "training.max_steps": 1, "quantization.mode": "none"})
    told = refused(lambda: train(recipe, console=quiet()))
    assert said in told and "fetch it" not in told


def test_an_llms_own_dropout_is_off(models_: Path, tmp_path: Path) -> None:
    config = SeedOssConfig(
        **COMMON, vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, attention_dropout=0.5, residual_dropout=0.5
    )
    changes = {"model.llm": str(write_kind(tmp_path, config)), "quantization.mode": "none", "lora.enabled": False}
    loaded = load_base(whole_recipe(tmp_path, changes), CPU)
    model = loaded.model.train()
    ids = torch.arange(4, 20)[None]
    first, second = (model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("token", ["<pad>", "</s>", "<unk>", "red", "?", "USER"])
def test_an_image_token_with_another_use(token: str, models_: Path) -> None:
    assert "model.image_token" in refused(lambda: load_frontend(section(models_, image_token=token)))


def test_an_image_token_that_would_take_a_words_id(models_: Path, tmp_path: Path) -> None:
    shutil.copytree(models_ / "llm", tmp_path / "llm")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "a": 4, "b": 6}  # the next free number is 6, by their count
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(tmp_path / "llm")
    told = refused(lambda: load_frontend(section(models_, llm=str(tmp_path / "llm"))))
    assert "have holes" in told and "that of 'b'" in told


@pytest.mark.parametrize("layer", [0, 4, -5, 100])
def test_a_vision_layer_that_is_none(layer: int, models_: Path) -> None:
    assert "model.vision_feature_layer" in refused(lambda: load_frontend(section(models_, vision_feature_layer=layer)))
    for good in (1, 3, -1, -4):
        load_frontend(section(models_, vision_feature_layer=good))


@pytest.mark.parametrize("select", ["default", "full"])
def test_visual_tokens_are_counted_as_the_model_gives_them(select: str) -> None:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config("llama", 64),
        vision_feature_select_strategy=select,
        image_token_index=63,
    )
    model = LlavaForConditionalGeneration(config)
    got = model.model.get_image_features(pixel_values=torch.zeros(1, 3, 16, 16))
    rows = got.pooler_output[0] if hasattr(got, "pooler_output") else got[0]
    assert tokens_per_image(vision, select) == rows.shape[-2]


@pytest.mark.parametrize(
    ("part", "where"), [("llm", "mlp.down_proj"), ("llm", "embed_tokens"), ("vision", "patch_embedding")]
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["nf4", "none"])
def test_a_weight_that_is_not_finite(
    part: str, where: str, number: float, mode: str, models_: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models_ / part, tmp_path / "broken"))
    state = load_file(folder / "model.safetensors")
    next(one for name, one in state.items() if where in name).view(-1)[0] = number
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    recipe = whole_recipe(models_, {f"model.{part}": str(folder), "quantization.mode": mode})
    told = refused(lambda: load_base(recipe, CPU))
    assert told.startswith(f"model.{part}: the weight ") and where in told and "aren't finite" in told


@pytest.mark.parametrize(
    "change",
    [
        {"image_std": [0, 1, 1]},
        {"image_std": [1, 1]},
        {"image_std": [float("nan")] * 3},
        {"image_mean": ["a", 1, 1]},
        {"image_mean": {"a": 1}},
        {"rescale_factor": float("inf")},
        {"rescale_factor": 0},
        {"size": {"shortest_edge": 0}},
        {"size": {"shortest_edge": 1_000_000}},
        {"crop_size": {"height": -1, "width": 8}},
        {"size": "[" * 5000},
        {"image_std": None},
        {"resample": 99},
        {"resample": []},
        {"do_resize": False},
    ],
    ids=str,
)
def test_an_image_processor_that_makes_no_pixels(change: dict[str, Any], models_: Path, tmp_path: Path) -> None:
    settings = json.loads((models_ / "vision" / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | change))
    told = refused(lambda: load_image_processor(tmp_path))
    assert told.startswith("model.vision: ") and len(told) < 1000


PIXTRAL, TILES, PATCHES = (
    {"image_processor_type": f"{name}ImageProcessor"} for name in ("Pixtral", "LlavaNext", "Siglip2")
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, "makes pictures of 24 × 24 pixels"),
        ({"do_center_crop": False, "size": {"height": 16, "width": 24}}, "makes pictures of 24 × 16 pixels"),
        ({"crop_size": {"height": 8, "width": 8}}, "makes pictures of 8 × 8 pixels"),
        ({"size": None}, "makes no pictures"),
        ({"size": {"longest_edge": 16}}, "makes no pictures"),
        # They don't enlarge, cut into tiles, or into patches.
        (
            PIXTRAL | {"patch_size": 4, "size": {"longest_edge": 16}, "do_center_crop": False},
            "makes pictures of 8 × 8 pixels",
        ),
        (TILES | {"image_grid_pinpoints": [[32, 32]]}, "cuts pictures into pieces (one becomes 5 × 3 × 16 × 16"),
        (PATCHES | {"patch_size": 4, "max_num_patches": 16}, "cuts pictures into pieces (one becomes 16 × 48"),
    ],
    ids=str,
)
def test_pictures_of_another_size_than_the_encoders(
    change: dict[str, Any], said: str, models_: Path, tmp_path: Path
) -> None:
    shutil.copytree(models_ / "vision", tmp_path / "vision")
    path = tmp_path / "vision" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    told = refused(lambda: load_frontend(section(models_, vision=str(tmp_path / "vision"))))
    assert told.startswith("model.vision: ") and said in told and "its encoder takes 16 × 16" in told


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("llm", {"num_hidden_layers": 10**9}),
        ("llm", {"num_hidden_layers": 0}),
        ("llm", {"vocab_size": 10**12}),
        ("llm", {"hidden_size": -64}),
        ("llm", {"hidden_act": "evil"}),
        ("llm", {"num_attention_heads": 0}),
        ("llm", {"model_type": []}),
        ("vision", {"image_size": 0}),
        ("vision", {"patch_size": 0}),
        ("vision", {"image_size": 10**6}),
        ("vision", {"patch_size": 17}),
    ],
    ids=str,
)
def test_a_configuration_of_no_model(part: str, change: dict[str, Any], models_: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models_ / part, tmp_path / part))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    told = refused(lambda: load_frontend(section(models_, **{part: str(folder)})))
    assert told.startswith(f"model.{part}: ") and len(told) < 1000


def test_a_models_own_program_is_never_run(models_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal, and take "y" for yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    classes = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"], "AutoImageProcessor": "evil.I"}
    classes["AutoModel"] = "evil.M"
    text = json.dumps({"model_type": "evil", "auto_map": classes})
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(text)
    assert "those aren't run here" in refused(lambda: read_config(str(tmp_path), "model.llm"))
    refused(lambda: load_image_processor(tmp_path))
    refused(lambda: load_tokenizer(str(tmp_path), "model.llm"))
    refused(lambda: read_checkpoint(AutoModel, str(tmp_path), "model.llm"))
    refused(lambda: load_frontend(section(models_, vision=str(tmp_path))))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"embedding_multiplier": 12.0}, "scales embeddings inside"),
        ({"logits_scaling": 8.0}, "scales its logits"),
        ({"embedding_multiplier": 1.0, "logits_scaling": 1.0}, ""),
    ],
)
def test_scales_inside_an_llm_are_refused_by_its_configuration(
    own: Any, said: str, models_: Path, tmp_path: Path
) -> None:
    """Before its weights are read; E, v and v̂ would lie on two sides of the scale of embeddings."""
    shutil.copytree(models_ / "llm", tmp_path / "llm")
    plain = text_config("llama", len(tiny_tokenizer()))
    size = {key: getattr(plain, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "pad_token_id")}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    GraniteConfig(**size, **own).save_pretrained(tmp_path / "llm")
    there = section(models_, llm=str(tmp_path / "llm"))
    if not said:
        load_frontend(there)
        return
    told = refused(lambda: load_frontend(there))
    assert told.startswith("model.llm: ") and said in told and "Choose another LLM" in told


def test_the_llm_of_a_llava_checkpoint_is_looked_at_too(tmp_path: Path) -> None:
    write_llava(tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    config["text_config"] = Gemma2Config(**COMMON, vocab_size=64, num_key_value_heads=2).to_dict()
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
    told = refused(lambda: load_frontend(ModelSection(base=str(tmp_path / "llava"))))
    assert told.startswith("model.base: ") and "soft cap of 30" in told


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": "/x"}}',
                                  '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "b\\\\c"}}', "\xff"])  # fmt: skip
def test_an_index_of_weights_that_leads_elsewhere(text: str, models_: Path, tmp_path: Path) -> None:
    shutil.copytree(models_ / "llm", tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    recipe = whole_recipe(tmp_path, {"model.llm": str(tmp_path / "llm"), "model.vision": str(models_ / "vision")})
    told = refused(lambda: load_base(recipe, CPU))
    assert told.startswith("model.llm: ") and "model.safetensors.index.json" in told and "fetch" in told


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client tries six times for each file, which takes half a minute."""
    monkeypatch.setattr(hub, "getproxies", dict)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", address)
        hub.hub_is_away.cache_clear()
        assert not hub.hub_is_away() and not hub.local_only("a/b") and hub.local_only(".")
    assert not hub.hub_is_away()  # it was asked
    hub.hub_is_away.cache_clear()
    assert hub.hub_is_away() and hub.local_only("a/b")
    told = refused(lambda: read_config("a/b", "model.llm"))
    assert "the hub can’t be reached" in told and "\n  fix: check the connection or the proxy" in told
    assert "`train` needs all of it" in told and told.endswith("hf download a/b --local-dir b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "\n  fix: unset HF_HUB_OFFLINE" in refused(lambda: read_config("a/b", "model.llm"))
    hub.hub_is_away.cache_clear()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_that_nobody_wants_is_not_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv(name, "1")
    hub.hub_is_away.cache_clear()
    assert hub.hub_is_away() and hub.local_only("a/b")
    hub.hub_is_away.cache_clear()


def test_a_switch_that_would_make_float32_coarse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = whole_recipe(tmp_path)
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    assert "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" in refused(lambda: check_machine(recipe, torch.device("cuda")))
    check_machine(recipe, CPU)
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0")
    check_machine(recipe, torch.device("cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("how", ["precision", "legacy", "each", "all"])
def test_a_program_that_has_made_float32_coarse(device: str, how: str, tmp_path: Path) -> None:
    """Each of torch's ways to say it, in a notebook or a program that calls ours."""
    recipe, matmul = (
        whole_recipe(tmp_path),
        torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul,
    )
    place = torch.device(device)
    try:
        if how == "precision":
            torch.set_float32_matmul_precision("medium")
        elif how == "legacy":
            torch.backends.cuda.matmul.allow_tf32 = True
        elif how == "each":
            matmul.fp32_precision = "tf32"
        else:
            torch.backends.fp32_precision = "tf32"
        if (how, device) == ("legacy", "cpu"):  # it is about cards alone
            check_machine(recipe, place)
        else:
            assert 'torch.set_float32_matmul_precision("highest")' in refused(lambda: check_machine(recipe, place))
        torch.set_float32_matmul_precision("highest")
        check_machine(recipe, place)
    finally:
        torch.set_float32_matmul_precision("highest")
        for one in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            one.fp32_precision = "none"
        assert torch.get_float32_matmul_precision() == "highest"
