"""What a run writes: its checkpoints and its final bundle, against the room there is."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite.model.audit import Part
from basic_lite.recipe.rules import best_by
from basic_lite.recipe.schema import Recipe
from basic_lite.sizes import number_of, size_text
from basic_lite.training.optimizer_state import STATE_BLOCK


@dataclass(frozen=True)
class Disk:
    """Bytes that a run has on the disk at most, tokenizer and log apart."""

    weights_bytes: int  # projector and adapter: what the final bundle holds
    state_bytes: int  # the optimizer's
    checkpoints: int  # at once: those kept, and one that is being written
    results: int = 1  # the final bundle; the best step's, and one that replaces it

    @property
    def most_bytes(self) -> int:
        """All of it."""
        return self.checkpoints * (self.weights_bytes + self.state_bytes) + self.results * self.weights_bytes


def disk_of(recipe: Recipe, parts: Sequence[Part], steps: int | None) -> Disk:
    """What a run writes.

    Args:
        parts: the part table; what trains is saved.
        steps: the run's; None: not known, and so many as fill the checkpoints that are kept.
    """
    training, trained = recipe.training, [part for part in parts if part.trainable]
    weights = sum(part.bytes * part.trainable // part.parameters for part in trained)
    saves = training.keep + 1 if steps is None else math.ceil(steps / training.save_every)
    state = sum(state_bytes(part, training.optimizer) for part in trained)
    return Disk(weights, state, min(saves, training.keep + 1), 1 if best_by(recipe) is None else 3)


def state_bytes(part: Part, optimizer: str) -> int:
    """Bytes of a part's two moments, by the rules of ``optimizer``'s module; its small matrices make no difference."""
    if optimizer == "adamw":
        return 2 * part.bytes * part.trainable // part.parameters
    if optimizer.endswith("8bit") and part.part != "projector":
        return 2 * part.trainable + 8 * math.ceil(part.trainable / STATE_BLOCK)
    return 8 * part.trainable


def free_bytes(folder: Path) -> int:
    """Room where a folder is, or would be made."""
    there = next(place for place in [folder.absolute(), *folder.absolute().parents] if place.is_dir())
    return shutil.disk_usage(there).free


def disk_lines(disk: Disk, free: int, folder: Path) -> Iterator[str]:
    """What the run writes and what is free, with a warning where that is too little."""
    one, last = size_text(disk.weights_bytes + disk.state_bytes), size_text(disk.weights_bytes)
    many = f"{number_of(disk.checkpoints, 'checkpoint')} of {one}"
    results = f"the result {last}"
    if disk.results > 1:
        results += ", the best step as much, and once more while a better one replaces it"
    yield f"disk: at most {size_text(disk.most_bytes)} ({many}, {results}); {size_text(free)} free"
    if disk.most_bytes > free:
        yield (
            f"warning: the run writes up to {size_text(disk.most_bytes)} to {folder}, where {size_text(free)} are "
            "free: make room, lower training.keep, or change output"
        )
