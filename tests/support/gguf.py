"""Tiny random llava-hf folders whose language models and tokenizers GGUF can hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3TextConfig,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from basic_lite.data.chat import ChatFormat
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import ImageFit, ModelSection, Template
from basic_lite.tools.export.files import write_files
from basic_lite.training.tensor_files import save_tensors
from tests.support.models import text_config, write_image_processor

LINES = (
    "What is this? It's a red kangaroo, isn't it; we've 12 of them and 345 more!",
    "The picture shows   three  spaces, a tab\tand\n\n\ntwo empty lines.\r\nHE'S HERE, I'll go.",
    "Größe, naïve café, Ελληνικά, русский язык, 日本語のテキスト, 한국어, ไทย, हिन्दी, عربى 🦘🎈",
    "def f(x): return x**2 + 1.5e-3  # camelCaseWord snake_case http://example.org/a/b?c=d",
)
"""What the tokenizers are trained on, and where they are compared."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# The Mistral Nemo and GPT-4o vocabularies cut between cases.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES: dict[str, Any] = {"qwen2": QWEN2, "llama-bpe": LLAMA3, "dbrx": LLAMA3, "tekken": TEKKEN, "gpt-4o": GPT4O}
WHOLE_WORDS = ("llama-bpe", "tekken")
BYTE_LEVEL = ("gpt-2", "smollm", *RULES)


def byte_tokenizer(pre: str, *, size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the rule that llama.cpp calls ``pre``."""
    core = Tokenizer(models.BPE(ignore_merges=pre in WHOLE_WORDS))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in RULES)
    first: list[Any] = []
    if pre == "smollm":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in RULES:
        first = [pre_tokenizers.Split(Regex(RULES[pre]), "isolated")]
    core.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    core.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(LINES * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def piece_tokenizer(scratch: Path, scheme: str = "first", *, size: int = 450) -> PreTrainedTokenizerBase:
    """SentencePiece's BPE with byte fallback, as Llama 2 has it.

    Args:
        scheme: where a space is put before a text: "first" (the start of all), "always" (after special tokens too),
            "never" (as Gemma).
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 4),
            model_writer=file,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.98,
            minloglevel=2,
        )
    tokenizer = LlamaTokenizer.from_pretrained(str(scratch), add_bos_token=True)
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "</s>")
    return tokenizer


def tower_config(kind: str, **changes: Any) -> CLIPVisionConfig | SiglipVisionConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    cls = SiglipVisionConfig if kind == "siglip" else CLIPVisionConfig
    return cls(**{**sizes, "image_size": 48, "patch_size": 8, **changes})


def language_config(kind: str, vocab_size: int, **changes: Any) -> Any:
    """As `tests.support.models`, Gemma 3 too; rows of 32 values or more, so that q8_0 can hold them."""
    if kind == "gemma3":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
        own = {"num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
        rows = {"vocab_size": vocab_size, "max_position_embeddings": 512}
        config = Gemma3TextConfig(**{**sizes, **own, **rows, **changes})
        config.architectures = ["Gemma3ForCausalLM"]
        return config
    return text_config(kind, vocab_size, **changes)


def loud(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that are felt: biases and norms too, all of them different."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.2
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    return module


def write_llava(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str = "llama",
    tower: str = "siglip",
    fit: ImageFit = "square",
    template: Template = "tokenizer",
    rows: int = 512,
    layer: int = -2,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """A llava-hf folder in float32, as an export writes it, with a random model.

    Args:
        rows: of the embedding table; more than the tokenizer has.
        text, vision: changes of the configurations.
    """
    scratch = folder.with_name(folder.name + "-parts")
    config = language_config(kind, rows, **(text or {}))
    llm = loud(AutoModelForCausalLM.from_config(config), 0)
    llm.save_pretrained(scratch / "llm")
    tokenizer.save_pretrained(scratch / "llm")
    seen = tower_config(tower, **(vision or {}))
    eye = loud(SiglipVisionModel(seen) if tower == "siglip" else CLIPVisionModel(seen), 1)
    eye.save_pretrained(scratch / "vision")
    write_image_processor(
        scratch / "vision", kind="SiglipImageProcessor" if tower == "siglip" else "CLIPImageProcessor", size=48
    )
    section = ModelSection(vision=str(scratch / "vision"), llm=str(scratch / "llm"), vision_feature_layer=layer)
    frontend = load_frontend(section)
    chat = ChatFormat.of(template, frontend)
    folder.mkdir(parents=True)
    write_files(folder, frontend, chat, fit, torch.float32)
    save_tensors(_tensors(llm, eye), folder / "model.safetensors")
    shutil.rmtree(scratch)
    return folder


def _tensors(llm: nn.Module, eye: nn.Module) -> dict[str, Tensor]:
    """All tensors by the names of an export."""
    width, hidden = eye.config.hidden_size, llm.config.hidden_size
    projector = loud(nn.ModuleDict({"linear_1": nn.Linear(width, hidden), "linear_2": nn.Linear(hidden, hidden)}), 2)
    tied = llm.config.tie_word_embeddings
    found = {f"language_model.{n}": t for n, t in llm.state_dict().items() if not (tied and n == "lm_head.weight")}
    for name, tensor in eye.state_dict().items():
        name = name.removeprefix("vision_model.")
        if not name.startswith("head."):
            found[f"vision_tower.vision_model.{name}"] = tensor
    return found | {f"multi_modal_projector.{name}": tensor for name, tensor in projector.state_dict().items()}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Fields, tensors in float32, and how each tensor is stored."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {one.name: gguf.dequantize(one.data, one.tensor_type) for one in reader.tensors}
    return fields, tensors, {one.name: one.tensor_type.name for one in reader.tensors}
