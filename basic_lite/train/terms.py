"""The terms of one optimizer step's loss, summed over its micro-batches; and a token mean for evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Terms:
    """Collects on the device; ``take`` brings a step's values to the host, summed over all processes.

    A step in which BASIC is off (``every_n_steps``) shows the terms of the last one that had it on.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.first_micro_batch = True
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, tuple[Tensor, int]] = {}
        self._last: dict[str, float] = {}
        self._started = time.perf_counter()

    def begin_step(self) -> None:
        """A new optimizer step, before its samples are fetched."""
        self.begin_again()
        self._started = time.perf_counter()

    def begin_again(self) -> None:
        """The same step once more: what it has added so far doesn't count, the time it took does."""
        self.first_micro_batch = True
        self._sums, self._means = {}, {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's share of a term; the shares of a step sum to the step's term."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.first_micro_batch = False

    def add_means(self, metrics: Mapping[str, Tensor | float], samples: int) -> None:
        """Add measures that are means over ``samples`` samples."""
        for name, value in metrics.items():
            total, weight = self._means.get(name, (torch.zeros(()), 0))
            share = torch.as_tensor(value).detach().float() * samples
            self._means[name] = (total.to(share.device) + share, weight + samples)

    def take(self, accelerator: Any) -> dict[str, float]:
        """The step's terms, measures, tokens a second (fetching included, evaluation and saving not) and seconds."""
        seconds = time.perf_counter() - self._started
        sums, means = self._sums, self._means
        if accelerator.num_processes > 1:
            sums, means = _over_processes(accelerator, sums, means)
        out = {name: float(value) for name, value in sums.items()}
        out |= {name: float(total) / weight for name, (total, weight) in means.items() if weight}
        self._last |= {name: value for name, value in out.items() if name != "lm"}
        return self._last | out | {"tokens_per_s": self.tokens / seconds, "step_s": seconds}


def _over_processes(
    accelerator: Any, sums: dict[str, Tensor], means: dict[str, tuple[Tensor, int]]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, int]]]:
    """Sums over all processes; one of them may have had no image, so names are brought together first."""
    from accelerate.utils import gather_object

    rows = gather_object(
        [
            (
                {name: float(value) for name, value in sums.items()},
                {name: (float(total), weight) for name, (total, weight) in means.items()},
            )
        ]
    )
    all_sums: dict[str, Tensor] = {}
    all_means: dict[str, tuple[Tensor, int]] = {}
    for row_sums, row_means in rows:
        for name, value in row_sums.items():
            all_sums[name] = all_sums.get(name, torch.zeros(())) + value
        for name, (total, weight) in row_means.items():
            before, count = all_means.get(name, (torch.zeros(()), 0))
            all_means[name] = (before + total, count + weight)
    return all_sums, all_means


class TokenMean:
    """A mean over labelled tokens of all batches of an evaluation."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, mean: Tensor, count: int) -> None:
        """A batch's mean over ``count`` tokens."""
        if count:
            self._sum += float(mean) * count
            self._count += count

    def take(self, accelerator: Any) -> float:
        """The mean so far, over all processes, and start anew."""
        pair = torch.tensor([self._sum, float(self._count)], dtype=torch.float64)
        if accelerator.num_processes > 1:
            pair = accelerator.reduce(pair.to(accelerator.device), "sum")
        self._sum, self._count = 0.0, 0
        return float(pair[0] / pair[1].clamp(min=1))
