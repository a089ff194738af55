"""The demo's LLM: a small Llama, trained from scratch on text only."""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from basic_lite.data.batches import Collator
from basic_lite.data.tokens import IGNORE
from basic_lite.demo.text import PIECE, Document, read_lesson

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

# Optimizer steps of two rounds; in the second, what the first left flat (which shape belongs to which colour) is learnt
# anew. In each the rates warm up over 50 and fall linearly to zero.
STEPS = (8700, 2000)
# First steps, which show only copies and retellings: from these attention learns to look things up.
_WARM_UP_LESSONS = 150
# Documents of a step.
_BATCH = 20
# Batches are cut from this many batches' worth of documents, sorted by length, so that little is padding.
_POOL_BATCHES = 8
# Muon's, for the decoder's matrices. At three times this rate attention did not learn which colour belongs to which
# shape.
_MATRIX_RATE = 1.5e-3
# AdamW's, for embeddings, head and norms.
_OTHER_RATE = 1e-3
# Words that nothing predicts (which objects there are, what is asked) teach little and drown the rest.
_CONTEXT_WEIGHT = 0.05
# The share of steps at the end that see the matrices as NF4 will store them, so that the answers survive that.
_QUANTISED_SHARE = 0.08


def train_language(
    out_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    steps: tuple[int, int] = STEPS,
    progress: Callable[[str], None] = print,
) -> None:
    """Train the LLM on descriptions, conversations and retellings of training scenes, and save it.

    Args:
        out_dir: gets config and weights, as AutoModelForCausalLM reads them.
        tokenizer: the demo's own; its ids and chat template are what the LLM learns.
        seed: the seed of scenes, text and initial weights.
        steps: the steps of each round.
        progress: called with one line of text every 100 steps.
    """
    torch.manual_seed(seed)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **special, **LLM_CONFIG))
    _round(model, _batches(f"language {seed}", tokenizer, _WARM_UP_LESSONS), steps[0], progress)
    if steps[1]:
        _round(model, _batches(f"language {seed} again", tokenizer, 0), steps[1], progress)
    model.save_pretrained(out_dir)


def _round(
    model: LlamaForCausalLM, batches: Iterator[dict[str, Tensor]], steps: int, progress: Callable[[str], None]
) -> None:
    """Train from where ``model`` is, with new optimizers whose rates rise and fall once."""
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=_MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=_OTHER_RATE, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    schedulers = [LambdaLR(one, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps)) for one in optimizers]
    answer_losses: list[float] = []
    for step, batch in enumerate(itertools.islice(batches, steps), 1):
        ids = batch["input_ids"]
        with _as_nf4(matrices if step - 1 >= (1 - _QUANTISED_SHARE) * steps else []):
            # No attention mask: padding is on the right, where causal attention never looks back from.
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            supervised = (batch["labels"] != IGNORE)[:, 1:].flatten().float()
            real = batch["attention_mask"][:, 1:].flatten().float()
            weights = supervised + _CONTEXT_WEIGHT * (real - supervised)
            ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        answer_losses.append(((losses * supervised).sum() / supervised.sum()).item())
        if step % 100 == 0 or step == steps:
            recent = answer_losses[-100:]
            progress(f"language: step {step} of {steps}, answer loss {sum(recent) / len(recent):.3f}")


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


def _batches(seed: str, tokenizer: PreTrainedTokenizerFast, warm_up: int) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches without end, the first ``warm_up`` of them of copies and retellings only."""
    rng, collate, vocabulary = random.Random(seed), Collator(tokenizer.pad_token_id), tokenizer.get_vocab()
    done = 0
    while True:
        documents = [
            _encode(read_lesson(rng, only_copies=done < warm_up), vocabulary) for _ in range(_POOL_BATCHES * _BATCH)
        ]
        documents.sort(key=lambda document: len(document["input_ids"]))
        chunks = [documents[i : i + _BATCH] for i in range(0, len(documents), _BATCH)]
        rng.shuffle(chunks)
        yield from map(collate, chunks)
        done += len(chunks)


# The tokenizer's own pattern, with the special tokens that it takes out beforehand. Calling the tokenizer on
# each part, to know which words are answers, would take longer than a training step.
_TOKEN = re.compile(rf"</?s>|{PIECE}")


def _encode(document: Document, vocabulary: dict[str, int]) -> dict[str, list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    for text, learn in document:
        words = [vocabulary[word] for word in _TOKEN.findall(text)]
        ids += words
        labels += words if learn else [IGNORE] * len(words)
    return {"input_ids": ids, "labels": labels}
