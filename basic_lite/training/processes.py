"""The processes that a launcher has started, by ``accelerate.Accelerator``; one process without a launcher."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from basic_lite.errors import OutOfMemory, StoppedElsewhere, UserError, is_out_of_memory, reason_of
from basic_lite.model.load import pick_device
from basic_lite.recipe.rules import accumulation
from basic_lite.recipe.schema import Recipe

T = TypeVar("T")

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# What a launcher asks for by environment variable, some of which accelerate passes over in silence on a CPU.
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


class Processes:
    """How many processes train together, which one this is, and how they add up what they found.

    Each holds the whole model and works on its own micro-batches. Gradients are summed once a step, after the last
    backward. No wrapper stands around the model, so a process whose micro-batches hold no image, or that has none at
    all in a step, adds zeros and nothing waits for a gradient that never comes.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        """``accelerator`` None: one process; accelerate's state, which is the whole program's, isn't touched."""
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
    def launched(self) -> bool:
        """Whether a launcher has started this process, which then sends signals on to it."""
        return self.count > 1 or "TORCHELASTIC_RUN_ID" in os.environ

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.index == 0

    def sum(self, numbers: Iterable[float]) -> list[Any]:
        """The sums of numbers over all processes, in their own type: host numbers where there is one process.

        Raises:
            UserError: another process is gone.
        """
        numbers = list(numbers)
        if self.count == 1:
            return numbers
        assert self.accelerator is not None
        whole = all(isinstance(number, int) for number in numbers)
        values = torch.tensor(numbers, dtype=torch.int64 if whole else torch.float64, device=self.accelerator.device)
        return list(self._with_others(lambda: reduce(values, "sum").tolist()))

    def sum_tensor(self, value: Tensor) -> Tensor:
        """The sum over all processes.

        Raises:
            UserError: another process is gone.
        """
        return value if self.count == 1 else self._with_others(lambda: reduce(value, "sum"))

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.count == 1 else self.sum([int(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Give what every process has, in their order.

        Raises:
            UserError: another process is gone.
        """
        return [value] if self.count == 1 else self._with_others(lambda: list(gather_object([value])))

    def from_main(self, value: Any) -> Any:
        """Give the main process's value.

        Raises:
            UserError: another process is gone.
        """
        return value if self.count == 1 else self._with_others(lambda: broadcast_object_list([value])[0])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; a missing one counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.sum_tensor(gradient)

    @torch.no_grad()
    def copy_main_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the main process's weights.

        Raises:
            UserError: another process is gone.
        """

        def copy_all() -> None:
            for parameter in parameters:
                parameter.copy_(broadcast(parameter.detach(), from_process=0))

        if self.count > 1:
            self._with_others(copy_all)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wrap work that each process does alone. If one raises ``UserError``, all stop here and one reports it.

        Raises:
            UserError: this process's error, if it is the first that has one.
            StoppedElsewhere: another process has one and reports it.
        """
        error: UserError | OutOfMemory | None = None
        try:
            yield
        except (UserError, OutOfMemory) as found:
            error = found
        if not self.any(error is not None):
            return
        reporter = self.gather(error is not None).index(True)
        if error is not None and reporter == self.index:
            raise error
        raise StoppedElsewhere(f"process {reporter} has an error and reports it")

    def _with_others(self, exchange: Callable[[], T]) -> T:
        """Run an exchange that needs every process.

        Raises:
            UserError: another one is gone.
        """
        try:
            return exchange()
        except RuntimeError as error:
            if is_out_of_memory(error) or "CUDA error" in str(error):  # this process's own
                raise
            raise UserError(
                f"process {self.index} of {self.count} lost another one, whose own message says why; "
                f"fix that, and continue with --resume ({reason_of(error)})"
            ) from error


ALONE = Processes()


def take_device(recipe: Recipe) -> torch.device:
    """This process's device. From here on it is torch's current one: what asks "the" GPU must not open the first.

    Raises:
        UserError: there is no such device.
    """
    device = pick_device(recipe.training.device)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"the launcher started process {device.index} on this machine, and torch sees "
                f"{torch.cuda.device_count()} GPUs; lower --num_processes"
            )
        torch.cuda.set_device(device)
    return device


def connect(recipe: Recipe, device: torch.device, *, bf16: bool, trackers: list[Any]) -> Processes:
    """The processes of a run.

    Args:
        device: this process's.
        bf16: the model's forwards run under bf16 autocast.
        trackers: accelerate's trackers, or their names.

    Raises:
        UserError: the launcher shards the model, or the global batch doesn't divide over the processes.
    """
    _refuse_sharding()
    # accelerate's state is the whole program's: an earlier run of this program may have had other settings.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no", log_with=trackers or None
    )
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise UserError(
            f"the launcher asks for {kind.value}; a run is on CPUs, or on NVIDIA or AMD GPUs. "
            "Launch with `accelerate launch --multi_gpu --num_processes N -m basic_lite train …`"
        )
    processes = Processes(accelerator)
    with processes.together():
        accumulation(recipe, processes.count)
    return processes


def _refuse_sharding() -> None:
    """Refuse sharding before accelerate reads these variables: on CPUs it would drop some of them in silence."""
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UserError(
                f"the launcher asks for {name} ({variable}), which splits one model over processes. "
                "That can't work here: BASIC reads the vocabulary table outside the model's forward, "
                "where a split table is not whole. A split layer waits for every process at each forward, "
                "but in an epoch's last step, an evaluation and the refinement curve some processes have fewer. "
                "Let each process hold the whole model: "
                "`accelerate launch --multi_gpu --num_processes N -m basic_lite train …`"
            )
