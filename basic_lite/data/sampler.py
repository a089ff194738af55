"""Order of the samples: like lengths together, one modality at a time, from a generator of its own."""

from dataclasses import dataclass

import numpy as np
import torch

from basic_lite.recipe.schema import Grouping

# Global batches that are sorted by length together: enough to find like lengths, few enough to stay random.
_POOL_BATCHES = 50


def generator_of(seed: int, stream: int) -> torch.Generator:
    """One of the generators of a seed. Hashed, so that stream 1 of seed 0 has nothing to do with stream 0 of seed 1."""
    state = int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state % 2**63)


@dataclass
class GroupedSampler:
    """Indices of one epoch, ``global_batch`` after ``global_batch``, each micro-batch a slice of one.

    The order follows from ``(seed, epoch)`` alone: the global generator is neither read nor changed, a
    resumed run sees the same order, and so does a run with another ``micro_batch``.

    Modes:

    - length: in pools of 50 global batches, samples are sorted by length (longest first) and cut into global batches;
      these are then shuffled.
    - modality_length: the same among samples with images and among those without, so a global batch has one modality.
      What is left over of both (fewer than ``global_batch`` each) comes mixed at the end, images first, or at the
      beginning if it has the longest sample. So at most one micro-batch of an epoch holds both.
    - none: a random order.

    The global batch with the longest sample comes first: a run that lacks memory fails in its first step, not after
    hours. Every sample comes once an epoch. The last global batch is smaller where the samples don't fill it.

    Args:
        lengths: Tokens of each sample, after cutting [n].
        has_image: Whether each sample has an image [n].
        global_batch: Samples of one optimizer step.
    """

    lengths: np.ndarray
    has_image: np.ndarray
    global_batch: int
    mode: Grouping = "modality_length"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.has_image):
            raise ValueError(f"{len(self.lengths)} lengths but {len(self.has_image)} has_image")

    def __len__(self) -> int:
        return len(self.lengths)

    def order(self, epoch: int) -> np.ndarray:
        """All indices [n] in the order of an epoch."""
        generator = generator_of(self.seed, epoch)
        if self.mode == "none" or not len(self):
            return self._longest_batch_first(torch.randperm(len(self), generator=generator).numpy())
        everything = np.arange(len(self))
        if self.mode == "length":
            groups = [everything]
        else:
            groups = [everything[self.has_image], everything[~self.has_image]]
        batches: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for group in groups:
            whole, left = self._batches(group, generator)
            batches += whole
            rest.append(left)
        # The left-overs of both modalities: perhaps one more whole global batch, then the smaller last one.
        mixed = np.concatenate(rest)
        if len(mixed) >= self.global_batch:
            batches.append(mixed[: self.global_batch])
            mixed = mixed[self.global_batch :]
        order = [batches[n] for n in torch.randperm(len(batches), generator=generator).tolist()]
        if order:
            longest = max(range(len(order)), key=lambda n: self.lengths[order[n]].max())
            order.insert(0, order.pop(longest))
            if len(mixed) and self.lengths[mixed].max() > self.lengths[order[0]].max():
                # Of a modality that fills no global batch all are left over: that batch fills one with them.
                joined = np.concatenate([mixed, order[0]])
                first, mixed = np.split(joined, [self.global_batch])
                order[0] = first[np.argsort(~self.has_image[first], kind="stable")]
        return np.concatenate([*order, mixed])

    def _longest_batch_first(self, order: np.ndarray) -> np.ndarray:
        """The global batch with the longest sample of all goes to the front; that sample is never left over."""
        whole = len(order) // self.global_batch * self.global_batch
        if not whole:
            return order
        place = int(self.lengths[order].argmax())
        if place >= whole:
            order[[0, place]] = order[[place, 0]]
            return order
        start = place // self.global_batch * self.global_batch
        batch = np.arange(start, start + self.global_batch)
        return np.concatenate([order[batch], np.delete(order, batch)])

    def _batches(self, group: np.ndarray, generator: torch.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """A group's whole global batches, and what is left over, both longest first."""
        shuffled = group[torch.randperm(len(group), generator=generator).numpy()]
        whole = len(shuffled) // self.global_batch * self.global_batch
        if whole:
            # The longest sample is never left over: the first step must be the one that needs most memory.
            first = int(self.lengths[shuffled].argmax())
            shuffled[[0, first]] = shuffled[[first, 0]]
        batches: list[np.ndarray] = []
        pool = _POOL_BATCHES * self.global_batch
        for start in range(0, whole, pool):
            ordered = self._longest_first(shuffled[start : min(start + pool, whole)])
            batches += np.split(ordered, len(ordered) // self.global_batch)
        return batches, self._longest_first(shuffled[whole:])

    def _longest_first(self, indices: np.ndarray) -> np.ndarray:
        return indices[np.argsort(-self.lengths[indices], kind="stable")]
