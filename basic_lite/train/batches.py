"""The batches of a run: which samples each optimizer step has, and the loader that reads them."""

import ctypes
import math
import multiprocessing
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from basic_lite.data.problems import RecordProblem
from basic_lite.data.sampler import GroupedSampler
from basic_lite.recipe.schema import Recipe
from basic_lite.train.interruption import start_worker
from basic_lite.train.processes import Processes
from basic_lite.train.step import Batch


class Schedule:
    """Which samples the steps of a run have. All of it follows from the recipe's seed; nothing is drawn on the way."""

    def __init__(self, sampler: GroupedSampler, recipe: Recipe) -> None:
        training = recipe.training
        self.sampler, self.global_batch, self.micro_batch = sampler, training.global_batch, training.micro_batch
        self.steps_per_epoch = max(1, math.ceil(len(sampler) / self.global_batch))
        self.steps = training.max_steps or max(1, math.ceil(self.steps_per_epoch * training.epochs))
        # Two epochs: near an epoch's end the loader, which reads ahead, is in the next one already.
        self._order_of = lru_cache(maxsize=2)(sampler.order)

    def samples_of(self, step: int) -> list[int]:
        """The samples of a 0-based step; the last step of an epoch may have fewer."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch
        return [int(i) for i in self._order_of(epoch)[start : start + self.global_batch]]

    def micro_batches(self, step: int, processes: Processes) -> list[list[int]]:
        """This process's micro-batches of a step. In an epoch's last step a process may have none."""
        samples = self.samples_of(step)
        groups = [samples[i : i + self.micro_batch] for i in range(0, len(samples), self.micro_batch)]
        return groups[processes.index :: processes.count]

    def epochs_after(self, steps: int) -> float:
        """Passes over the data that so many steps are."""
        return steps / self.steps_per_epoch

    def samples_after(self, steps: int) -> int:
        """Samples that so many steps have seen."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.sampler) + min(rest * self.global_batch, len(self.sampler))


@contextmanager
def loading(
    dataset: Dataset[Any], batches: Any, collate: Any, recipe: Recipe, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Host batches, pinned where they go to a GPU. The loader's workers end with the context.

    Its generator is its own. A loader draws a seed for its workers whenever it is iterated, by default from the global
    generator: evaluating, or resuming in the middle of an epoch, would then change the dropout of every later step.

    Raises:
        RecordProblem: a record that was fine before the run is broken now.
    """
    ending = multiprocessing.RawValue(ctypes.c_bool, False)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=recipe.data.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(start_worker, ending=ending),
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    try:
        yield iter(loader)
    except RecordProblem as problem:
        raise problem.found_while_training() from problem
    finally:
        ending.value = True


def step_batches(
    dataset: Dataset[Any],
    collate: Any,
    schedule: Schedule,
    recipe: Recipe,
    device: torch.device,
    processes: Processes,
    first: int,
) -> Generator[list[Batch]]:
    """This process's micro-batches of each step from ``first`` on, on the host. Workers end when it is closed."""
    steps = range(first, schedule.steps)
    ahead = (samples for step in steps for samples in schedule.micro_batches(step, processes))
    with loading(dataset, ahead, collate, recipe, device) as source:
        for step in steps:
            yield [next(source) for _ in schedule.micro_batches(step, processes)]
