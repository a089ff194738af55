"""Looks at each step's numbers before they change a weight: what isn't finite stops the run, and a spike is told."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from basic_lite.console import Say, new_run_from
from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import StoppedElsewhere, UserError
from basic_lite.model.adapt import lora_parameters, projector_parameters
from basic_lite.model.checks import broken_weights
from basic_lite.training.batches import Schedule
from basic_lite.training.gradients import broken_gradients
from basic_lite.training.log import RunLog
from basic_lite.training.places import checkpoints_of
from basic_lite.training.run_folder import RunFolder
from basic_lite.training.step import Batch, StepCounts, Terms, TrainStep

# Losses that a spike is held against, and how many there must be.
REMEMBERED, ENOUGH = 100, 20
# A spike is this many times the median, and so many spreads above it. The spread is of the losses' logarithms: the
# median distance from their median, times 1.4826, which of a normal distribution is its standard deviation.
TIMES, SPREADS = 2.0, 6.0
_MOST_NAMES = 4
_LOSSES = {"lm": "LM", "das": "DAS", "sds": "SDS"}
_STATE = "the optimizer's state"


@dataclass(frozen=True)
class _Seen:
    """One process's numbers of a step.

    Attributes:
        terms: the losses' sums, by name.
        norms: lengths of gradients and optimizer state, by name.
        batches: of each micro-batch: its part of the LM loss, its labelled tokens, its samples.
    """

    terms: dict[str, float]
    norms: dict[str, float]
    batches: list[tuple[float, int, int]]


class Watch:
    """Reads a step's losses, and the lengths of its gradients and of the optimizer's state: one wait for the device."""

    def __init__(
        self,
        train_step: TrainStep,
        data: SupervisedDataset,
        schedule: Schedule,
        folder: RunFolder,
        log: RunLog,
        say: Say,
        *,
        losses: list[float],
        save: Callable[[], None],
    ) -> None:
        """
        Args:
            losses: LM losses of the last steps; kept up to date here, so that a checkpoint can have them.
            save: saves the steps that are done, unless that has happened.
        """
        self._parts, self._optimizer, self._processes = train_step.parts, train_step.optimizer, train_step.processes
        self._data, self._schedule, self._folder = data, schedule, folder
        self._log, self._say, self._losses, self._save = log, say, losses, save
        groups = {"the projector": projector_parameters(self._parts), "LoRA": lora_parameters(self._parts.model)}
        self._trained = {name: [p for p in found.values() if p.requires_grad] for name, found in groups.items()}

    def look(self, step: int, batches: list[Batch], terms: Terms, counts: StepCounts) -> None:
        """Look at a step after its backwards, before its update.

        Args:
            step: 1-based.
            batches: this process's micro-batches, on the host.

        Raises:
            UserError: a number isn't finite. All steps before are saved first, where their weights are sound.
        """
        seen = self._processes.gather(self._read(batches, terms))
        if not all(map(math.isfinite, _numbers(seen))):
            self._stop(step, seen)
        loss = sum(one.terms.get("lm", 0.0) for one in seen)
        if is_spike(loss, self._losses):
            spike = self._spike(step, loss, seen, counts)
            self._say(f"warning: {spike}")
            self._log.write(step, {"spike": spike})
        self._losses.append(loss)
        del self._losses[:-REMEMBERED]

    def _read(self, batches: list[Batch], terms: Terms) -> _Seen:
        """Bring the numbers to the host in one copy."""
        sums, parts = terms.sums(), terms.lm_parts
        norms = {f"the gradient of {name}": _length(p.grad for p in found) for name, found in self._trained.items()}
        if self._optimizer is not None:
            norms[_STATE] = _length(_state_of(self._optimizer))
        known = {name: value for name, value in norms.items() if value is not None}
        every = [*sums.values(), *known.values(), *parts]
        read = torch.stack([value.float() for value in every]).tolist() if every else []
        cut, end = len(sums), len(sums) + len(known)
        labelled = [int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches]
        samples = [len(batch["labels"]) for batch in batches]
        return _Seen(
            dict(zip(sums, read[:cut], strict=True)),
            dict(zip(known, read[cut:end], strict=True)),
            list(zip(read[end:], labelled, samples, strict=True)),
        )

    def _stop(self, step: int, seen: Sequence[_Seen]) -> NoReturn:
        """Say where the numbers are, and how to go on."""
        terms = [
            f"the {name} loss"
            for key, name in _LOSSES.items()
            if not all(math.isfinite(one.terms.get(key, 0.0)) for one in seen)
        ]
        norms = list(dict.fromkeys(n for one in seen for n, value in one.norms.items() if not math.isfinite(value)))
        # What one process has, all must know of: a checkpoint is saved by all of them, or by none.
        every = self._processes.gather(broken_weights(self._parts.model))
        weights = list(dict.fromkeys(name for one in every for name in one))
        found = [*terms, *norms, *_some([f"the weight {name}" for name in weights])]
        detail = broken_gradients(self._parts)
        where = f" (gradients of {', '.join(_some(detail))})" if detail else ""
        broken = [
            (process, index)
            for process, one in enumerate(seen)
            for index, (loss, _, _) in enumerate(one.batches)
            if not math.isfinite(loss)
        ]
        some = broken and len(broken) < sum(len(one.batches) for one in seen)
        records = f", in {self._records(step, seen, *broken[0])}" if some else ""
        if not weights and _STATE not in norms:
            self._save()
        if not self._processes.is_main:
            raise StoppedElsewhere("process 0 reports it")
        good = checkpoints_of(self._folder.path)
        mend = "a lower training.projector_learning_rate or training.learning_rate"
        raise UserError(
            f"step {step} has numbers that aren't finite: {', '.join(found)}{where}{records}. "
            + (
                f"The last good weights are in {good[-1]}; go on from them in a new run with "
                f"{new_run_from(good[-1])} and {mend}. --resume would come to the same numbers again"
                if good
                else f"No step before it was saved; start again with {mend}"
            )
        )

    def _spike(self, step: int, loss: float, seen: Sequence[_Seen], counts: StepCounts) -> str:
        usual = statistics.median(self._losses)
        means = {
            (process, index): part * max(counts.labelled_tokens, 1) / max(labelled, 1)
            for process, one in enumerate(seen)
            for index, (part, labelled, _) in enumerate(one.batches)
        }
        most = max(means, key=lambda place: means[place])
        return (
            f"the loss of step {step} is {loss:.3g}, and the median of the {len(self._losses)} before it {usual:.3g}; "
            f"highest, {means[most]:.3g}, in {self._records(step, seen, *most)}"
        )

    def _records(self, step: int, seen: Sequence[_Seen], process: int, index: int) -> str:
        """A micro-batch by its number and the places of its records."""
        name = f"micro-batch {index + 1}"
        rows = [samples for _, _, samples in seen[process].batches]
        planned = self._schedule.micro_batches(step - 1, self._processes, process)
        samples = [sample for batch in planned for sample in batch]
        if len(samples) != sum(rows):  # some were dropped, and which is where can't be told
            return name
        start = sum(rows[:index])
        places = [self._data.record(sample).place for sample in samples[start : start + rows[index]]]
        return f"{name}: {', '.join(_some(places))}"


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss stands out from those before it, by their median and spread on a logarithmic scale."""
    logs = [math.log(one) for one in before if one > 0]
    if len(logs) < ENOUGH or loss <= 0:
        return False
    middle = statistics.median(logs)
    spread = 1.4826 * statistics.median(abs(one - middle) for one in logs)
    return math.log(loss) - middle > max(math.log(TIMES), SPREADS * spread)


def _length(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """The Euclidean norm over all numbers of some tensors; None: there are none."""
    found = [tensor for tensor in tensors if tensor is not None]
    return nn.utils.get_total_norm(found) if found else None


def _state_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The optimizer's moments. Of 8-bit ones the factor of each block, which isn't finite where the block isn't."""
    for state in optimizer.state.values():
        for name, value in state.items():
            # Not bitsandbytes' code tables (qmap), nor counts of steps.
            wanted = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
            if wanted and not name.startswith("qmap"):
                yield value


def _numbers(seen: Sequence[_Seen]) -> Iterator[float]:
    for one in seen:
        yield from (*one.terms.values(), *one.norms.values(), *(loss for loss, _, _ in one.batches))


def _some(names: Sequence[str]) -> list[str]:
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return [*names[:_MOST_NAMES], *more]
