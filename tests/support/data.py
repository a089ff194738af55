"""Tiny tokenizers of every kind, chat templates in the spirit of known models, and records; all offline."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record, Turn

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: what is in the picture? ASSISTANT: a red circle above a blue square.",
    "user assistant system question answer [INST] [/INST] model human gpt",
    "How many things are there? There are two things.\nThe picture shows a small green ring.",
]
N = 5

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Writes an empty thought before the last answer only, as Qwen3 does, and leaves out what was thought before.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "llama3": LLAMA3,
    "chatml": CHATML,
    "generation": CHATML_GENERATION,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "thinking": THINKING,
}
SPECIAL = ["<|start|>", "<|end|>", "<|eot|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
KINDS = ("word", "byte", "byte_bos", "spm", "spm_first")


@cache
def tokenizer(kind: str, template: str | None = None, image: bool = True) -> Any:
    """A tiny tokenizer.

    Kinds: word (words between white space, unk), byte (byte-level BPE), byte_bos, spm (a dummy prefix after every
    special token, as Llama 2's), spm_first (a dummy prefix at the start only).
    """
    special = ["<unk>", "<s>", "</s>", *SPECIAL]
    if kind == "word":
        words = sorted({word for line in CORPUS for word in line.split()})
        backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind.startswith("byte"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(CORPUS, trainer)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "spm":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
        bytes_ = [f"<0x{n:02X}>" for n in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *bytes_], show_progress=False)
        # Learnt on single words, as SentencePiece does; used on whole texts.
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.train_from_iterator(CORPUS, trainer)
        # The bytes were passed as special only to be in the vocabulary; parsed from text they must not be.
        data = json.loads(backend.to_str())
        data["added_tokens"] = [one for one in data["added_tokens"] if not one["content"].startswith("<0x")]
        backend = Tokenizer.from_str(json.dumps({**data, "pre_tokenizer": None}))
        if kind == "spm":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if kind != "byte":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=None if kind.startswith("byte") else "<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL,
    )
    if image:
        made.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<image>"]})
    made.chat_template = TEMPLATES[template] if template else None
    return made


def image_id(tok: Any) -> int:
    """Id of `<image>`, or one beyond the vocabulary where the tokenizer has none."""
    known = tok.get_vocab().get("<image>")
    return len(tok) + 3 if known is None else int(known)


def record(*turns: str, images: int = 0, roles: str = "") -> Record:
    """A record of human and gpt turns in alternation, or of ``roles`` (letters h, g, s)."""
    names: dict[str, Any] = {"h": "human", "g": "gpt", "s": "system"}
    roles = roles or ("hg" * len(turns))[: len(turns)]
    refs = tuple(ImageRef(f"{n}.png", "/nowhere") for n in range(images))
    return Record(7, "x7", "data.json", refs, tuple(Turn(names[r], t) for r, t in zip(roles, turns, strict=True)))


def supervised(encoded: Any) -> list[int]:
    return [label for label in encoded.labels if label != -100]


def write_json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def write_image(path: Path, size: tuple[int, int] = (8, 6), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def processor(size: int = 8) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Smooth noise, as uneven as a photo."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
