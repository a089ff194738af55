"""The batches of a run: which samples each optimizer step has, and the loader that reads them."""

import ctypes
import multiprocessing
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from basic_lite.data.problems import RecordProblem
from basic_lite.data.sampler import GroupedSampler
from basic_lite.recipe.rules import steps_an_epoch, steps_of
from basic_lite.recipe.schema import Recipe
from basic_lite.training.interruption import start_worker
from basic_lite.training.processes import Processes
from basic_lite.training.step import Batch


class Schedule:
    """Which samples the steps of a run have. All of it follows from the recipe's seed; nothing is drawn on the way."""

    def __init__(self, sampler: GroupedSampler, recipe: Recipe) -> None:
        training = recipe.training
        self.sampler, self.global_batch, self.micro_batch = sampler, training.global_batch, training.micro_batch
        self.steps_per_epoch = steps_an_epoch(recipe, len(sampler))
        self.steps = steps_of(recipe, len(sampler))
        self._eval_every = training.eval_every or self.steps
        # Two epochs: near an epoch's end the loader, which reads ahead, is in the next one already.
        self._order_of = lru_cache(maxsize=2)(sampler.order)

    def samples_of(self, step: int) -> list[int]:
        """The samples of a 0-based step; the last step of an epoch may have fewer."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch
        return [int(i) for i in self._order_of(epoch)[start : start + self.global_batch]]

    def micro_batches(self, step: int, processes: Processes, index: int | None = None) -> list[list[int]]:
        """The micro-batches of a 0-based step. In an epoch's last step a process may have none.

        Args:
            index: of the process; None: this one.
        """
        samples = self.samples_of(step)
        groups = [samples[i : i + self.micro_batch] for i in range(0, len(samples), self.micro_batch)]
        return groups[processes.index if index is None else index :: processes.count]

    def evaluates(self, step: int) -> bool:
        """Whether held-out data is looked at after a step, from 1: every so many, and after the last."""
        return step == self.steps or step % self._eval_every == 0

    def epochs_after(self, steps: int) -> float:
        """Passes over the data that so many steps are."""
        return steps / self.steps_per_epoch

    def samples_after(self, steps: int) -> int:
        """Samples that so many steps have seen."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.sampler) + min(rest * self.global_batch, len(self.sampler))


class Gathered(NamedTuple):
    """A micro-batch as the loader gives it.

    Attributes:
        batch: of the samples that could be read; None: of none.
        dropped: what is wrong with each of the others.
    """

    batch: Batch | None
    dropped: list[str]


@dataclass(eq=False)
class _Reading(Dataset[Any]):
    """Samples, and for a record that broke since it was checked: its problem in words, or its exception."""

    dataset: Dataset[Any]
    drop: bool

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except RecordProblem as problem:
            if not self.drop:
                raise
            return str(problem)


@dataclass(frozen=True)
class _Gathering:
    """Collates the samples that could be read. Picklable."""

    collate: Any

    def __call__(self, read: list[Any]) -> Gathered:
        samples = [one for one in read if not isinstance(one, str)]
        return Gathered(self.collate(samples) if samples else None, [one for one in read if isinstance(one, str)])


@contextmanager
def loading(
    dataset: Dataset[Any], batches: Any, collate: Any, recipe: Recipe, device: torch.device
) -> Iterator[Iterator[Gathered]]:
    """Host batches, pinned where they go to a GPU. The loader's workers end with the context.

    Its generator is its own. A loader draws a seed for its workers whenever it is iterated, by default from the global
    generator: evaluating, or resuming in the middle of an epoch, would then change the dropout of every later step.

    Raises:
        RecordProblem: a record that was fine before the run is broken now, and `data.bad_records` is refuse.
    """
    ending = multiprocessing.RawValue(ctypes.c_bool, False)
    loader = DataLoader(
        _Reading(dataset, recipe.data.bad_records == "drop"),
        batch_sampler=batches,
        collate_fn=_Gathering(collate),
        num_workers=recipe.data.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(start_worker, ending=ending),
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    try:
        yield iter(loader)
    except RecordProblem as problem:
        raise problem.found_while_training(opened_before=recipe.data.check_images == "open") from problem
    finally:
        ending.value = True


class StepBatches(NamedTuple):
    """One process's share of a step: micro-batches on the host, and what is wrong with the records that it lost."""

    batches: list[Batch]
    dropped: list[str]


def step_batches(
    dataset: Dataset[Any],
    collate: Any,
    schedule: Schedule,
    recipe: Recipe,
    device: torch.device,
    processes: Processes,
    first: int,
) -> Generator[StepBatches]:
    """This process's micro-batches of each step from ``first`` on. Workers end when it is closed."""
    steps = range(first, schedule.steps)
    ahead = (samples for step in steps for samples in schedule.micro_batches(step, processes))
    with loading(dataset, ahead, collate, recipe, device) as source:
        for step in steps:
            gathered = [next(source) for _ in schedule.micro_batches(step, processes)]
            yield StepBatches(
                [one.batch for one in gathered if one.batch is not None],
                [problem for one in gathered for problem in one.dropped],
            )
