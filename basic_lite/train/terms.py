"""Sums of the loss terms over the micro-batches of the steps between two log lines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


class Terms:
    """Collects on the device; ``take`` brings the means to the host once a log line."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        self._weights: dict[str, int] = defaultdict(int)
        self._steps = 0
        self._detailed_step = -1
        self._tokens = 0
        self._since = time.perf_counter()

    def begin_step(self, tokens: int) -> None:
        """A new optimizer step of so many tokens (padding not counted)."""
        self._steps += 1
        self._tokens += tokens

    def first_of_step(self) -> bool:
        """True once a step: for a measure that one micro-batch is enough for."""
        first = self._detailed_step != self._steps
        self._detailed_step = self._steps
        return first

    def add(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's share of a term; the shares of a step sum to the step's term."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_means(self, metrics: Mapping[str, Tensor | float], samples: int) -> None:
        """Add measures that are means over ``samples`` samples."""
        if samples == 0:
            return
        for name, value in metrics.items():
            share = torch.as_tensor(value).detach().float() * samples
            self._means[name] = self._means[name] + share if name in self._means else share
            self._weights[name] += samples

    def take(self, now: float) -> dict[str, float]:
        """The log line's values, and start anew."""
        steps = max(self._steps, 1)
        out = {name: float(value) / steps for name, value in self._sums.items()}
        out |= {name: float(value) / self._weights[name] for name, value in self._means.items()}
        seconds = now - self._since
        out["tokens_per_s"] = self._tokens / seconds if seconds > 0 else 0.0
        out["step_s"] = seconds / steps
        self.__init__()  # type: ignore[misc]
        return out
