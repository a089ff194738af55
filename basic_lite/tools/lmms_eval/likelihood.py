"""How likely a run finds a given answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from basic_lite.data.batches import Collator
from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.records import Record
from basic_lite.model.llava import likelihoods_of
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import ImageFit
from basic_lite.scoring.questions import require_room

# Nothing is cut: what the model has no room for is refused.
_ANY_LENGTH = 2**31


@dataclass(frozen=True)
class Likelihood:
    """How likely an answer is.

    Attributes:
        loss: −log p of the whole answer, its end included: nats, summed over its tokens.
        likeliest: whether each of its tokens is the likeliest, so that it is what the model answers.
    """

    loss: float
    likeliest: bool


@torch.no_grad()
def likelihoods(
    loaded: Loaded,
    chat: ChatFormat,
    records: Sequence[Record],
    *,
    image_fit: ImageFit,
    batch_size: int,
    images: Callable[[int], tuple[ImageRef, ...]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """The likelihood of each record's answer, in the template and with the label mask of training.

    Logits are made of a chunk of the answers' tokens at a time (``likelihoods_of``), never [B, T, V].

    Args:
        images: index → the images to show.
        progress: called with the number of answers that were looked at.

    Raises:
        RecordProblem: a record has no answer, is longer than the model reads, or an image can't be read.
    """
    encoded = [chat.encode(record, _ANY_LENGTH) for record in records]
    lengths = iter(encoded)
    require_room(loaded.frontend, records, lambda _: len(next(lengths).input_ids), "question with the answer")
    order = sorted(range(len(records)), key=lambda i: (len(encoded[i].input_ids), i))
    found: dict[int, Likelihood] = {}
    collate, device = Collator(int(loaded.tokenizer.pad_token_id)), loaded.parts.device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        samples: list[dict[str, object]] = []
        for i in chosen:
            samples.append({"input_ids": encoded[i].input_ids, "labels": encoded[i].labels})
            if encoded[i].n_images:
                samples[-1]["pixel_values"] = pixels(images(i), loaded.frontend.image_processor, image_fit)
        inputs = {name: tensor.to(device) for name, tensor in collate(samples).items()}
        labels = inputs.pop("labels")
        hidden = loaded.model.model(**inputs, use_cache=False).last_hidden_state  # [B, T, D]
        scored = likelihoods_of(hidden, loaded.model.lm_head, labels)
        found |= zip(chosen, map(Likelihood, scored.nats.tolist(), scored.likeliest.tolist()), strict=True)
        progress(len(chosen))
    return [found[i] for i in range(len(records))]
