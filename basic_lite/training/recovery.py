"""Make a step that ran out of memory again by a plan that needs less; the step stays the same."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from basic_lite.console import Say
from basic_lite.data.pixel_table import TABLE
from basic_lite.errors import OutOfMemory, is_out_of_memory
from basic_lite.printable import one_line
from basic_lite.recipe.schema import TrainingSection
from basic_lite.training.plan import ActivePlan, Plan
from basic_lite.training.step import Batch


class Attempt:
    """A context around one attempt; that it finds no memory is kept in ``found`` instead of raised."""

    def __init__(self, parts: list[Batch]) -> None:
        self.found: str | None = None
        self._parts = parts

    def __enter__(self) -> list[Batch]:
        return self._parts

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error):
            return False
        # The message alone: with the exception go the frames that hold the failed attempt's tensors.
        self.found = str(error)
        self._parts = []
        return True


class Recovery:
    """Attempts by plans that need less and less memory; remembers which one had enough.

    The whole optimizer step is tried again, since a backward that broke off has left some of its gradients.
    """

    def __init__(
        self,
        training: TrainingSection,
        device: torch.device,
        image_token_id: int,
        say: Say,
        *,
        alone: bool,
        active: ActivePlan,
        next_plan: Callable[[Plan], Plan | None] | None = None,
    ) -> None:
        """
        Args:
            alone: whether this is the only process. Several can't begin a step again: the others wait for this one.
            active: the plan that the run has now.
            next_plan: finds the fastest plan that needs less than the one that failed. Where it is None, or fails,
                micro-batches are halved, and when there is a single sample left all layers are recomputed.
        """
        self.micro_batch, self.global_batch = training.micro_batch, training.global_batch
        self.device, self.image_token_id = device, image_token_id
        self.alone, self.active = alone, active
        self._say, self._next = say, next_plan

    @property
    def plan(self) -> Plan:
        """The run's plan now: its first one, or one that needs less once memory ran out."""
        return self.active.plan

    def attempts(
        self,
        batches: Sequence[Batch],
        what: str,
        begin_again: Callable[[dict[str, Any]], None],
        *,
        backward: bool = True,
    ) -> Iterator[Attempt]:
        """The batches, cut as the plan says, until an attempt on them finds memory.

        Args:
            what: the name of the work for messages, such as "step 3".
            begin_again: called before a further attempt, with a record for the log. It undoes what the last one left,
                gradients and draws of dropout, so that the step is that of a run which had the plan from the start.
            backward: False: the work is a forward alone, which recomputed layers don't help.

        Raises:
            OutOfMemory: no plan has room, or other processes wait.
        """
        while True:
            samples = self.plan.micro_batch
            parts = [part for batch in batches for part in slices(batch, samples, self.image_token_id)]
            attempt = Attempt(parts)
            yield attempt
            if attempt.found is None:
                return
            del parts
            clear_device_cache(garbage_collection=True)
            largest = max((len(batch["input_ids"]) for batch in batches), default=1)
            record = self._lower(attempt.found, largest, what, backward=backward)
            begin_again(record)

    def _lower(self, found: str, largest: int, what: str, *, backward: bool) -> dict[str, Any]:
        """Change to a plan that a run could have begun with: its micro-batch divides the recipe's."""
        old, samples = self.plan, min(self.plan.micro_batch, largest)
        new = self._lower_plan(old, samples, what, backward) if self.alone else None
        if new is None:
            others = "" if self.alone else ", in one of several processes: --resume continues from the last checkpoint"
            raise OutOfMemory(f"in {what} with a micro-batch of {samples}{others}", found)
        self.active.change(new)
        record: dict[str, Any] = {"micro_batch": samples, "now": new.micro_batch}
        if replace(new, micro_batch=old.micro_batch) == old:
            how = (
                f"a micro-batch of {samples}: it starts again with {new.micro_batch}, accumulated "
                f"{self.global_batch // new.micro_batch} times; the global batch stays {self.global_batch}. "
            )
        else:
            record |= {"plan": str(new)}
            how = f"{old}: it starts again with {new}; global batch and result stay. "
        self._say(f"out of memory in {what} with {how}Set {new.overrides(old)} to begin with that")
        return record

    def _lower_plan(self, plan: Plan, samples: int, what: str, backward: bool) -> Plan | None:
        if backward and self._next is not None:
            self._say(f"out of memory in {what}: looking for a plan that needs less")
            try:
                return self._next(plan)
            except Exception as error:  # whatever it is, the run can go on without a planner
                found = one_line(f"{type(error).__name__}: {error}")
                self._say(f"warning: no plan could be looked for ({found}); smaller micro-batches are tried")
                self._next = None
        smaller = [n for n in range(1, (samples + 1) // 2 + 1) if self.micro_batch % n == 0 and n < samples]
        if smaller:
            return replace(plan, micro_batch=smaller[-1])
        return replace(plan, recomputed=plan.layers) if backward and plan.recomputed < plan.layers else None


@contextmanager
def memory_needed(when: str) -> Iterator[None]:
    """Raise ``OutOfMemory`` if the work inside runs out of memory.

    Args:
        when: the time for messages, such as "while the model was loaded".

    Raises:
        OutOfMemory: it does.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = str(error)
    raise OutOfMemory(when, found)


def slices(batch: Batch, samples: int, image_token_id: int) -> Iterator[Batch]:
    """Cut a collated batch into parts of at most ``samples`` samples, each as if it had been collated alone.

    Args:
        batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T]; ``pixel_values`` of I images in the order of their
            placeholders, as ``Collator`` gives them.
        samples: the most samples of a part.
        image_token_id: id of a visual token's placeholder; every image has equally many.
    """
    ids = batch["input_ids"]
    if len(ids) <= samples:
        yield batch
        return
    whole = {name: batch[name] for name in ("pixel_values", TABLE) if name in batch}
    pixels = whole.get("pixel_values")
    visual = (ids == image_token_id).sum(dim=1)  # [B]
    tokens_per_image = int(visual.sum()) // len(pixels) if pixels is not None else 1
    ends = (visual // max(tokens_per_image, 1)).cumsum(0).tolist()  # [B], images up to and with each sample
    for start in range(0, len(ids), samples):
        rows = slice(start, start + samples)
        seen = batch["attention_mask"][rows].any(dim=0).nonzero()
        columns = slice(int(seen[0]), int(seen[-1]) + 1)  # without the padding that only longer samples needed
        part = {name: x[rows, columns] for name, x in batch.items() if name not in whole}
        if pixels is not None:
            images = pixels[ends[start - 1] if start else 0 : ends[min(start + samples, len(ids)) - 1]]
            if len(images):
                part |= {**whole, "pixel_values": images}
        yield part


def samples_in(batches: Iterable[Batch]) -> int:
    """How many samples batches have."""
    return sum(len(batch["input_ids"]) for batch in batches)


def first_samples(batches: Iterable[Batch], count: int, image_token_id: int) -> list[Batch]:
    """The first ``count`` samples of collated batches; ``slices`` of them, so nothing is copied."""
    first = []
    for batch in batches:
        if count > 0:
            first.append(next(slices(batch, count, image_token_id)))
            count -= len(batch["input_ids"])
    return first


def random_state(device: torch.device) -> list[Tensor]:
    """The global generators' state that dropout on ``device`` draws from: the CPU's, and a GPU's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Restore what ``random_state`` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
