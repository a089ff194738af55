"""Tiny LLMs that can read: every byte is a token, and a short training on the probe's own texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from basic_lite.training.text_probe.texts import Passage, Question, passages, questions
from tests.support.models import text_config

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def few_passages() -> list[Passage]:
    """The beginnings of some of the probe's passages."""
    return [Passage(one.kind, one.given, one.text[:60]) for one in passages()[::2]]


def few_questions() -> list[Question]:
    """Some short questions of the probe."""
    return [one for one in questions() if len(one.given) < 24][::5]


def byte_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens; with ``bos`` it puts a start token before a text."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    # As the word-level one of other tests; a run's data needs it.
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    return tokenizer


def reader(kind: str = "llama", *, bos: bool = True, **changes: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random LLM of bytes, sure of what it says, and its tokenizer. There is a row for an image token, too."""
    torch.manual_seed(0)
    sure = {"initializer_range": 0.2, "num_hidden_layers": 2, "vocab_size": 320}
    return AutoModelForCausalLM.from_config(text_config(kind, **{**sure, **changes})).eval(), byte_tokenizer(bos=bos)


def write_reader(folder: Path, *, steps: int = 12) -> Path:
    """One that knows more of the probe's texts than nothing, by a short training on them; ``steps`` 0: a random one."""
    model, tokenizer = reader(initializer_range=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    texts = [(one.given + one.text)[:64] for one in few_passages()]
    batch = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    labels = batch.masked_fill(batch == tokenizer.pad_token_id, -100)
    for _ in range(steps):
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
