"""How likely an LLM finds texts: summed log-probabilities, in batches of samples of like length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite.data.tokens import IGNORE, Tokens
from basic_lite.model.llava import likelihoods_of
from basic_lite.model.parts import Parts


class Stopped(Exception):
    """Somebody asked to stop."""


@dataclass(frozen=True)
class Sample:
    """A text as token ids, and its labels: ``IGNORE`` for what is given, and for the first token."""

    ids: list[int]
    labels: list[int]

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return sum(label != IGNORE for label in self.labels)


def sample_of(tokens: Tokens, given: str, text: str) -> Sample:
    """A text after what is given, with the start token where the tokenizer has one."""
    ids, labels, _ = tokens.encode([(given, False), (text, True)])
    return Sample(ids, labels)


@torch.no_grad()
def nats_of(
    parts: Parts,
    samples: Sequence[Sample],
    tokens_at_once: int,
    progress: Callable[[int], object] = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Of each sample −log p of its scored tokens, summed, in nats.

    The LLM is asked alone, without tower and projector, in the mode that it is in. Samples of like length share a
    batch, padded on the right: no token looks to its right, so a sample's score is what it is alone. Nothing is drawn
    from any generator.

    Peak extra bytes: a forward of ``tokens_at_once`` tokens without gradients, and what ``likelihoods_of`` takes.

    Args:
        tokens_at_once: tokens of a batch with its padding; a longer sample is a batch alone.
        progress: called with the number of samples that were scored.
        stopped: asked before each batch.

    Raises:
        Stopped: ``stopped`` says so.
    """
    found = [0.0] * len(samples)
    for chosen in _batches([len(one.ids) for one in samples], tokens_at_once):
        if stopped():
            raise Stopped
        for place, nats in zip(chosen, _batch_nats(parts, [samples[i] for i in chosen]), strict=True):
            found[place] = nats
        progress(len(chosen))
    return found


def _batches(lengths: Sequence[int], tokens_at_once: int) -> Iterator[list[int]]:
    """Places in batches, from the longest sample to the shortest: what has no room has none at the start."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_at_once:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _batch_nats(parts: Parts, samples: Sequence[Sample]) -> list[float]:
    ids = _padded([one.ids for one in samples], 0)  # [B, T]; what a padded place holds is never looked at
    mask = _padded([[1] * len(one.ids) for one in samples], 0)
    labels = _padded([one.labels for one in samples], IGNORE)
    inputs = {"input_ids": ids.to(parts.device), "attention_mask": mask.to(parts.device)}
    hidden = parts.language_model(**inputs, use_cache=False).last_hidden_state  # [B, T, D]
    nats: list[float] = likelihoods_of(hidden, parts.lm_head, labels).nats.tolist()
    return nats


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
