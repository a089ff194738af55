"""This process among those that a launcher has started, by ``accelerate.Accelerator``; alone without one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from basic_lite.errors import UserError
from basic_lite.recipe.rules import accumulation
from basic_lite.recipe.schema import Recipe

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Processes:
    """How many processes train together, which one this is, and how they add up what they found.

    Each holds the whole model and works on its own micro-batches. Gradients are summed once a step, after the last
    backward. No wrapper stands around the model, so a process whose micro-batches hold no image, or that has none at
    all in a step, adds zeros and nothing waits for a gradient that never comes.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        """None: one process, and accelerate's state, which is the whole program's, stays as it is."""
        self.accelerator = accelerator

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.accelerator is None else self.accelerator.num_processes

    @property
    def index(self) -> int:
        """0 to ``count`` − 1."""
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.index == 0

    def sum(self, numbers: Iterable[float]) -> list[Any]:
        """The sums of numbers over all processes, in their own type: host numbers where there is one process."""
        numbers = list(numbers)
        if self.count == 1:
            return numbers
        assert self.accelerator is not None
        whole = all(isinstance(number, int) for number in numbers)
        values = torch.tensor(numbers, dtype=torch.int64 if whole else torch.float64, device=self.accelerator.device)
        return list(reduce(values, "sum").tolist())

    def sum_tensor(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value if self.count == 1 else reduce(value, "sum")

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.count == 1 else self.sum([int(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        return [value] if self.count == 1 else list(gather_object([value]))

    def share(self, value: Any) -> Any:
        """What the main process has."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; a missing one counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, "sum")

    @torch.no_grad()
    def same_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the main process's weights."""
        if self.count > 1:
            for parameter in parameters:
                parameter.copy_(broadcast(parameter.detach(), from_process=0))

    def wait(self) -> None:
        """Until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


ALONE = Processes()


def connect(recipe: Recipe, device: torch.device, *, bf16: bool, trackers: list[Any]) -> Processes:
    """The processes of a run.

    Args:
        device: this process's.
        bf16: the model's forwards run under bf16 autocast.
        trackers: accelerate's trackers, or their names.

    Raises:
        UserError: the launcher shards the model, or the global batch doesn't divide over the processes.
    """
    # accelerate's state is the whole program's: an earlier run of this program may have had other settings.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no", log_with=trackers or None
    )
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise UserError(
            f"the launcher asks for {kind.value}, which splits one model over processes. BASIC reads the vocabulary "
            "table and 4-bit weights whole, outside the model's forward, so every process must hold all of them. "
            "Launch with `accelerate launch --multi_gpu`, or with `accelerate launch --cpu`"
        )
    processes = Processes(accelerator)
    accumulation(recipe, processes.count)
    return processes
