"""The demo's LLM: a small Llama, trained from scratch on text only."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from basic_lite.demo.text import Document, read_lesson

# Both dimensions of every linear layer are multiples of 64, NF4's block.
LLM_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    # No text here is longer than about 200 words, so slow rotations would all look alike.
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "tie_word_embeddings": False,
    # With so small a width transformers' 0.02 leaves attention flat for a long time.
    "initializer_range": 0.08,
}

# Batches are cut from this many batches' worth of documents, sorted by length, so that little is padding.
_POOL_BATCHES = 8
# Words that nothing predicts (which objects there are, what is asked) teach little and drown the rest.
_CONTEXT_WEIGHT = 0.05


def train_language(
    out_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    steps: int = 8700,
    second_steps: int = 2000,
    batch: int = 20,
    matrix_rate: float = 1.5e-3,
    other_rate: float = 1e-3,
    warm_up_lessons: int = 150,
    quantised_share: float = 0.08,
    progress: Callable[[str], None] = print,
) -> None:
    """Train the LLM on descriptions, conversations and retellings of training scenes, and save it.

    Args:
        out_dir: gets config and weights, as AutoModelForCausalLM reads them.
        tokenizer: the demo's own; its ids and chat template are what the LLM learns.
        seed: of scenes, text and initial weights.
        steps, second_steps: optimizer steps of two rounds; in the second, what the first left flat (which shape
            belongs to which colour) is learnt anew. In each the rates warm up over 50 and fall linearly to zero.
        batch: documents per step.
        matrix_rate: Muon's rate for the decoder's matrices. At three times this rate attention did
            not learn which colour belongs to which shape.
        other_rate: AdamW's rate for embeddings, head and norms.
        warm_up_lessons: first steps, which show only copies and retellings: from these attention learns to
            look things up.
        quantised_share: the share of steps at the end that see the matrices as NF4 will store them, so that
            the answers survive being quantised.
        progress: called with one line of text every 100 steps.
    """
    torch.manual_seed(seed)
    rates = (matrix_rate, other_rate)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **LLM_CONFIG,
    )
    model = LlamaForCausalLM(config)
    _round(model, tokenizer, steps, f"language {seed}", warm_up_lessons, batch, rates, quantised_share, progress)
    if second_steps:
        _round(model, tokenizer, second_steps, f"language {seed} again", 0, batch, rates, quantised_share, progress)
    model.save_pretrained(out_dir)


def _round(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    name: str,
    warm_up_lessons: int,
    batch: int,
    rates: tuple[float, float],
    quantised_share: float,
    progress: Callable[[str], None],
) -> None:
    """Train from where ``model`` is, with new optimizers whose rates rise and fall once; ``name`` seeds the lessons."""
    matrix_rate, other_rate = rates
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=other_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    batches = _batches(random.Random(name), tokenizer, batch, warm_up_lessons)
    answer_losses: list[float] = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (1 - step / steps)
        for optimizer, rate in zip(optimizers, (matrix_rate, other_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        ids, answers = next(batches)
        with _as_nf4(matrices if step >= (1 - quantised_share) * steps else []):
            # No attention mask: padding is on the right, where causal attention never looks back from.
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            supervised = answers[:, 1:].flatten().float()
            real = (ids[:, 1:] != tokenizer.pad_token_id).flatten().float()
            weights = supervised + _CONTEXT_WEIGHT * (real - supervised)
            ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        answer_losses.append(((losses * supervised).sum() / supervised.sum()).item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            recent = answer_losses[-100:]
            progress(f"{name}: step {step + 1} of {steps}, answer loss {sum(recent) / len(recent):.3f}")


@contextmanager
def _as_nf4(matrices: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Round matrices to NF4 inside the context; gradients taken there then change the exact values."""
    exact = [p.data for p in matrices]
    try:
        for p in matrices:
            p.data = dequantize_4bit(*quantize_4bit(p.data, quant_type="nf4", compress_statistics=True))
        yield
    finally:
        for p, value in zip(matrices, exact, strict=True):
            p.data = value


def _batches(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, batch: int, warm_up: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids [B, T] and which of them are to be learnt, bool [B, T], without end."""
    vocabulary = tokenizer.get_vocab()
    done = 0
    while True:
        documents = [
            _encode(read_lesson(rng, only_copies=done < warm_up), vocabulary) for _ in range(_POOL_BATCHES * batch)
        ]
        documents.sort(key=lambda document: len(document[0]))
        chunks = [documents[i : i + batch] for i in range(0, len(documents), batch)]
        rng.shuffle(chunks)
        for chunk in chunks:
            longest = max(len(ids) for ids, _ in chunk)
            ids = torch.full((batch, longest), vocabulary[tokenizer.pad_token])
            answers = torch.zeros(batch, longest, dtype=torch.bool)
            for row, (words, supervised) in enumerate(chunk):
                ids[row, : len(words)] = torch.tensor(words)
                answers[row, : len(words)] = torch.tensor(supervised)
            yield ids, answers
            done += 1


# The tokenizer's own pattern, with the special tokens that it takes out beforehand. Calling the tokenizer on
# each part, to know which words are answers, would take longer than a training step. A test holds the two
# together.
_TOKEN = re.compile(r"</?s>|\w+|[^\w\s]|\n")


def _encode(document: Document, vocabulary: dict[str, int]) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    supervised: list[bool] = []
    for text, learn in document:
        words = [vocabulary[word] for word in _TOKEN.findall(text)]
        ids += words
        supervised += [learn] * len(words)
    return ids, supervised
