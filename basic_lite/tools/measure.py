"""``basic-lite estimate --measure``: two real steps on the longest batch, measured beside what was predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console

from basic_lite.console import Say, Sheet, show, speaker
from basic_lite.errors import NoMemory, UserError, is_out_of_memory
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Rehearsal, Shape
from basic_lite.rehearsal.batch import longest_batch
from basic_lite.sizes import size_text
from basic_lite.supervision import Supervision
from basic_lite.training.assembly import load_for_training, make_step, supervise
from basic_lite.training.step import StepCounts, TrainStep

MOST_MICRO_BATCHES = 2
MakeStep = Callable[[Recipe, Loaded, Supervision | None, torch.device], TrainStep]


class LongestStep:
    """Optimizer steps of a recipe on its longest batch, as training makes them.

    A step has the recipe's micro-batches, but at most ``MOST_MICRO_BATCHES``: from the second on all are alike.
    """

    def __init__(
        self, recipe: Recipe, loaded: Loaded, shape: Shape, device: torch.device, say: Say, make: MakeStep = make_step
    ) -> None:
        """
        Args:
            loaded: the recipe's model on ``device``, adapted.
            shape: the longest batch's.
            make: makes the step; the bench makes one with a clock around its operations.
        """
        self.loaded, self.device = loaded, device
        self.supervision = supervise(recipe, loaded, say)
        self.step = make(recipe, loaded, self.supervision, device)
        batch = longest_batch(loaded.frontend, shape)
        self.micro_batch_tokens = int(batch["attention_mask"].sum())  # without padding
        self.counts = StepCounts.of([batch], loaded.parts.image_token_id).times(shape.accumulation)
        size = loaded.frontend.config.vision_config.image_size
        batch["pixel_values"] = torch.randn(shape.samples * shape.images, 3, size, size)
        self.batches = [batch] * min(shape.accumulation, MOST_MICRO_BATCHES)

    def __call__(self, *, basic: bool = True, lap: Callable[[], object] = lambda: None) -> None:
        """One step.

        Args:
            basic: False leaves BASIC out, as ``supervision.enabled: false`` would.
            lap: called at the start, and where ``TrainStep`` calls it.
        """
        lap()
        supervision = self.supervision if basic else None
        lambdas = supervision.lambdas(0, 0) if supervision is not None else (0.0, 0.0)
        self.step(self.batches, self.counts, lambdas, lap)


@dataclass(frozen=True)
class Measured:
    """Bytes of a step, by the CUDA allocator and by the driver."""

    peak_bytes: int  # of all tensors at once, paged optimizer state apart
    reserved_bytes: int  # what the allocator took for them
    outside_bytes: int  # CUDA's context, managed memory, other processes


def measure_step(step: LongestStep, *, basic: bool = True, lap: Callable[[], object] = lambda: None) -> Measured:
    """Run one step on a GPU, after one that made the optimizer's state, and measure its memory.

    Raises:
        torch.cuda.OutOfMemoryError: too little memory.
    """
    device = step.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # what loading and earlier steps have left there isn't this step's
    torch.cuda.reset_peak_memory_stats(device)
    step(basic=basic, lap=lap)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return Measured(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total - free - torch.cuda.memory_reserved(device),
    )


def predicted_bytes(rehearsal: Rehearsal) -> int:
    """What ``Measured.peak_bytes`` should be: paged optimizer state is managed memory, not the allocator's."""
    return rehearsal.peak_bytes - rehearsal.pageable_bytes


def require_gpu() -> None:
    """Refuse before anything is loaded.

    Raises:
        UserError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "--measure runs two real steps, but torch sees no GPU (torch.cuda.is_available() is false); leave it out: "
            "the estimate itself needs none"
        )


def measure(recipe: Recipe, frontend: Frontend, shape: Shape, console: Console) -> Measured:
    """Load the model on the GPU, run two optimizer steps, measure the second.

    Raises:
        UserError: weights that can't be read, or too little memory.
    """
    device = torch.device("cuda", 0)
    say = speaker(console)
    # No earlier run's weights: fresh ones have the same size.
    step = LongestStep(recipe, load_for_training(recipe, device, frontend, say), shape, device, say)
    try:
        step()
        return measure_step(step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoMemory(
            f"--measure ran out of memory at {size_text(torch.cuda.max_memory_allocated(device))} of tensors; "
            "lower training.micro_batch, or see what the estimate advises"
        ) from error


def measure_and_show(recipe: Recipe, frontend: Frontend, rehearsal: Rehearsal, console: Console) -> None:
    """Measure, and print it beside the rehearsal."""
    found = measure(recipe, frontend, rehearsal.shape, console)
    taken = found.reserved_bytes + found.outside_bytes
    columns = ("", "predicted", "measured", "difference")
    table = Sheet(columns, f"on {torch.cuda.get_device_name(0)}")
    for what, predicted, measured in (
        ("tensors at the peak, without the optimizer's pages", predicted_bytes(rehearsal), found.peak_bytes),
        ("taken from the card", rehearsal.needed_bytes, taken),
    ):
        table.add(what, size_text(predicted), size_text(measured), f"{predicted / measured - 1:+.1%}")
    show(console, table)
