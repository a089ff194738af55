"""The terms of one optimizer step's loss, and its measures, summed over micro-batches and processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite.supervision import SupervisionLosses
from basic_lite.train.processes import Processes


@dataclass(frozen=True)
class MicroBatchLoss:
    """A micro-batch's loss and its terms. ``basic`` is None where BASIC is off in this step."""

    loss: Tensor
    lm: Tensor
    basic: SupervisionLosses | None


class Terms:
    """Collects on the device; ``values`` brings the sums to the host, which waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, tuple[Tensor, int]] = {}

    def add(self, result: MicroBatchLoss) -> None:
        """Add a micro-batch's shares of the terms, and its measures weighted by its samples with an image."""
        self._add("loss", result.loss)
        self._add("lm", result.lm)
        if result.basic is not None:
            self._add("das", result.basic.das)
            self._add("sds", result.basic.sds)
            for name, value in result.basic.metrics.items():
                share = value.detach().float() * result.basic.samples
                total, weight = self._means.get(name, (torch.zeros_like(share), 0))
                self._means[name] = (total + share, weight + result.basic.samples)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def values(self, processes: Processes) -> dict[str, float]:
        """The step's terms and measures, the same in every process."""
        own = (
            {name: float(value) for name, value in self._sums.items()},
            {name: (float(total), weight) for name, (total, weight) in self._means.items()},
        )
        sums: dict[str, float] = {}
        means: dict[str, tuple[float, int]] = {}
        # A process may have had no image, or no micro-batch at all: names are brought together by name.
        for row_sums, row_means in processes.gather(own):
            for name, value in row_sums.items():
                sums[name] = sums.get(name, 0.0) + value
            for name, (total, weight) in row_means.items():
                before, count = means.get(name, (0.0, 0))
                means[name] = (before + total, count + weight)
        return sums | {name: total / weight for name, (total, weight) in means.items() if weight}
