"""Hours and energy of a run: its products, over the speed that a device has. Predicted; the run measures its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from basic_lite.console import Sheet
from basic_lite.model.device import power_limit_watts
from basic_lite.rehearsal.cards import CARDS, products_a_second

# The share of a large product's speed that a whole step is assumed to reach. Between the products are the
# dequantisation of NF4 weights, norms, softmax, copies, and Python. Measured on two CPU cores, with
# the overheads below: the demo's stages took 0.9 and 1.2 times what this predicts, fifty photos 0.8 times. A model of
# SmolLM2's size took 0.55 times, before overheads were counted. No card has been measured.
UTILISATION = {"cuda": 0.35, "cpu": 0.5}
# Seconds beside the products for each micro-batch: Python, many small operations, the optimizer. Measured on two busy
# CPU cores with the demo's models and one sample a step: 0.05 s in stage 1, 0.13 s in stage 2. No card was measured.
OVERHEAD_S = {"cuda": 0.0, "cpu": 0.1}
# Fewer products than this take seconds anywhere, and overheads decide how many.
SMALL_RUN = 1e11


@dataclass(frozen=True)
class Work:
    """The products of a run.

    Attributes:
        micro_batches: of a step.
        looks: of a gate, all of them together.
    """

    per_step: float
    steps: int
    micro_batches: float = 1.0
    looks: float = 0.0

    @property
    def total(self) -> float:
        return self.per_step * self.steps + self.looks

    def seconds(self, speed: float, device: str) -> float:
        """How long it is likely to take at so many products a second."""
        return self.total / (speed * UTILISATION[device]) + OVERHEAD_S[device] * self.micro_batches * self.steps


def forecast_here(work: Work, device: torch.device, dtype: torch.dtype, processes: int = 1, note: str = "") -> str:
    """Hours and energy on a device of this machine, from the speed that its products have now.

    Args:
        note: what to say of the number of steps.
    """
    of = f" for {work.steps:,} steps ({note})" if note else ""
    if work.total < SMALL_RUN:
        overheads = OVERHEAD_S[device.type] * work.micro_batches * work.steps
        about = f", about {hours_text(overheads)} (predicted)" if overheads else ""
        return f"time{of}: {work.steps:,} small steps; overheads decide how long they take{about}"
    speed = products_a_second(device, dtype) * processes
    share = UTILISATION[device.type]
    watts, seconds = _watts(device), work.seconds(speed, device.type)
    beside = f", and {OVERHEAD_S[device.type]:g} s beside it for each micro-batch" if OVERHEAD_S[device.type] else ""
    text = hours_text(seconds)
    if device.type == "cpu":
        text = f"at least {hours_text(work.total / speed)}, more likely {text}"
    energy = f", {_energy(seconds, watts * processes)}" if watts else ""
    return (
        f"time{of}: {text}{energy} (predicted, not measured: {work.total / 1e12:.3g} TFLOP at {share:.0%} of the "
        f"{speed / 1e12:.2g} TFLOP/s that a large product reaches here{beside})"
    )


def _watts(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    model = torch.cuda.get_device_name(device).removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("Tesla ")
    return power_limit_watts(device) or next((card.watts for card in CARDS if card.name == model), None)


def cards_table(work: Work, note: str = "") -> Sheet:
    """Hours and energy on cards that aren't here; ``note``: what to say of the number of steps."""
    share, steps = UTILISATION["cuda"], f"{work.steps:,} steps" + (f" ({note})" if note else "")
    table = Sheet(
        ("card", "time", "energy"),
        f"time for {steps} on a card that has the memory (predicted, not measured: {share:.0%} of its own speed)",
    )
    for card in CARDS:
        seconds = work.seconds(card.tflops * 1e12, "cuda")
        table.add(card.name, hours_text(seconds), _energy(seconds, card.watts))
    return table


def sequence_table(works: Mapping[str, Work]) -> Sheet:
    """Hours and energy of runs one after another, on cards that aren't here; ``works``: by the name of the run."""
    title = f"time on a card that has the memory (predicted, not measured: {UTILISATION['cuda']:.0%} of its own speed)"
    table = Sheet(("card", *works, "all", "energy"), title)
    for card in CARDS:
        seconds = [work.seconds(card.tflops * 1e12, "cuda") for work in works.values()]
        table.add(card.name, *map(hours_text, seconds), hours_text(sum(seconds)), _energy(sum(seconds), card.watts))
    return table


def hours_text(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 20 min, 12 h, 3.1 days."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(math.ceil(seconds), 1)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _energy(seconds: float, watts: float) -> str:
    return f"at most {seconds * watts / 3.6e6:.2g} kWh"
