"""How well a language model answers without the picture: its loss on the answers, on a sample."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from basic_lite.data.record import IMAGE_PLACEHOLDER, Record
from basic_lite.data.records import Records
from basic_lite.model.checks import require_rows_for_tokens
from basic_lite.model.device import device_text
from basic_lite.model.frontend import load_tokenizer
from basic_lite.model.load import pick_device, pick_dtype, read_checkpoint

SAMPLE, SEED = 200, 0
_MOST_TOKENS = 1024


@dataclass(frozen=True)
class Blind:
    """What a language model makes of answers when it has the question alone.

    Attributes:
        answers: that were looked at.
        loss: nats a token, mean over answers.
        right: answers of which each token is the model's likeliest.
        places: the records of these.
        on: the device, in words.
    """

    answers: int
    loss: float
    right: int
    places: list[int]
    on: str


def blind(records: Records, indices: Sequence[int], model: str) -> Blind:
    """Ask a language model without pictures.

    Args:
        indices: of records with a picture and an answer; ``SAMPLE`` of them are drawn.
        model: a causal language model: a folder or a hub name.

    Raises:
        UserError: it can't be loaded.
    """
    device = pick_device("auto", "--model")
    tokenizer = load_tokenizer(model, "--model")
    options = {"dtype": pick_dtype("auto", device), "device_map": {"": device}}
    llm = read_checkpoint(AutoModelForCausalLM, model, "--model", **options).eval()
    require_rows_for_tokens(tokenizer, llm.get_input_embeddings().weight.shape[0], model, "--model", added=False)
    chosen = sorted(random.Random(SEED).sample(list(indices), min(SAMPLE, len(indices))))
    losses, right = [], []
    for index in chosen:
        found = _answer_loss(llm, tokenizer, records[index])
        if found is not None:
            losses.append(found[0])
            right += [index] * found[1]
    mean = sum(losses) / len(losses) if losses else float("nan")
    return Blind(len(losses), mean, len(right), right, device_text(device))


def _answer_loss(llm: Any, tokenizer: Any, record: Record) -> tuple[float, bool] | None:
    """Loss of the first answer's tokens, and whether each was the likeliest; None: there is nothing to say."""
    asked = next((n for n, turn in enumerate(record.turns) if turn.role == "human"), None)
    said = next((turn.text.strip() for turn in record.turns[(asked or 0) + 1 :] if turn.role == "gpt"), "")
    if asked is None or not said:
        return None
    question = " ".join(record.turns[asked].text.replace(IMAGE_PLACEHOLDER, " ").split())
    before = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    answer = tokenizer(f" {said}", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*before, *answer][:_MOST_TOKENS]], device=llm.device)
    labels = ids[0, len(before) :]
    if not len(labels):
        return None
    with torch.no_grad():
        logits = llm(input_ids=ids).logits[0, len(before) - 1 : -1].float()
    return float(functional.cross_entropy(logits, labels)), bool((logits.argmax(-1) == labels).all())
