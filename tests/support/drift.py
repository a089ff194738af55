"""Whether something grows while a program runs: counts, memory, and times that noise is in."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import psutil
import torch

# Of a standard normal variable, both sides: 95 %.
_Z = 1.96
# So many medians are made of a series of times: a single slow one says nothing then.
_WINDOWS = 20


@dataclass(frozen=True)
class Growth:
    """What a series gains from its start to its end, as a share of its median, with a 95 % interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:+.2%} [{self.low:+.2%}, {self.high:+.2%}]"


def growth(values: Sequence[float]) -> Growth:
    """The growth of evenly spaced values, by the median of all pairs' slopes.

    A few values that stand out move it little. The interval is by Kendall's variance (P. K. Sen, J. Am. Stat. Assoc.
    63, 1968, section 3).
    """
    slopes = sorted((values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2))
    n, count = len(values), len(slopes)
    half = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    whole = (n - 1) / float(np.median(values))
    return Growth(float(np.median(slopes)) * whole, slopes[low] * whole, slopes[high] * whole)


def medians(values: Sequence[float]) -> list[float]:
    """Some twenty medians, each of as many values in a row; what is left over at the end is left out."""
    size = max(1, len(values) // _WINDOWS)
    return [float(np.median(values[i : i + size])) for i in range(0, len(values) - size + 1, size)]


def reference_work() -> None:
    """The same work each time: small tensors and Python, as a step on a tiny model."""
    weights = torch.full((48, 48), 0.01)
    state = weights
    for number in range(120):
        state = torch.tanh(state @ weights + 0.1)
        if number % 10 == 0:
            sum(len(word) for word in {f"{i}": i for i in range(100)})


@dataclass
class Meter:
    """Takes down what a program holds and how long its parts take.

    Attributes:
        folder: whose files are counted, those below it too.
        levels: by name, in bytes or blocks: RSS, blocks of Python's allocator, bytes on the GPU.
        counts: open handles, threads, child processes, files.
        seconds: of each part, by name: processor time over that of the reference work beside it; on a GPU seconds.
    """

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    levels: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _reference: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Processor time of this process: other programs on the machine don't make it longer. On a GPU the clock's."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def compared(self, seconds: float) -> float:
        """A time over that of the same work done beside it, the median of the last nine; on a GPU the time itself.

        A busy machine has less cache and a slower clock for everybody.
        """
        if self.device.type != "cpu":
            return seconds
        began = time.process_time()
        reference_work()
        self._reference = [*self._reference[-8:], time.process_time() - began]
        return seconds / float(np.median(self._reference))

    def took(self, name: str, seconds: float) -> None:
        """Take down the time of one part."""
        self.seconds.setdefault(name, []).append(seconds)

    def look(self) -> None:
        """Take down what the program holds now, without what nobody needs any more."""
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        levels: dict[str, float] = {"RSS": process.memory_info().rss, "Python's blocks": sys.getallocatedblocks()}
        if self.device.type == "cuda":
            levels["GPU"] = torch.cuda.memory_allocated(self.device)
        counts = {
            "handles": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
            "threads": max(process.num_threads(), threading.active_count()),
            "processes": len(process.children(recursive=True)),
            "files": sum(path.is_file() for path in self.folder.rglob("*")),
        }
        for name, level in levels.items():
            self.levels.setdefault(name, []).append(level)
        for name, count in counts.items():
            self.counts.setdefault(name, []).append(count)

    def keep(self, path: Path) -> None:
        """Write all series down, so that there is something to look at where a program doesn't come to its end."""
        path.write_text(json.dumps({"levels": self.levels, "counts": self.counts, "seconds": self.seconds}))

    def findings(self, *, level: float = 0.01, slower: float = 0.05) -> list[str]:
        """What grows, in words; nothing where all is flat.

        Args:
            level: memory may grow by this share.
            slower: so may times; beyond doubt, since noise is in them.
        """
        found = [f"{name}: {grown}" for name, one in self.levels.items() if (grown := growth(one)).share > level]
        for name, some in self.counts.items():
            usual = max(some[: max(1, len(some) // 4)])
            if some[-1] > usual:
                found.append(f"{name}: {usual} at most in the first quarter, {some[-1]} at the end")
        for name, times in self.seconds.items():
            if (grown := growth(medians(times))).low > slower:
                found.append(f"time of {name}: {grown}")
        return found

    def figures(self) -> list[str]:
        """All series in a line each."""
        lines = [f"{name}: {growth(one)}, {one[0]:,.0f} → {one[-1]:,.0f}" for name, one in self.levels.items()]
        lines += [f"{name}: {one[0]} → {one[-1]}, at most {max(one)}" for name, one in self.counts.items()]
        for name, times in self.seconds.items():
            some = medians(times)
            lines.append(f"time of {name}: {growth(some)}, {some[0]:.3g} → {some[-1]:.3g}, {len(times)} times")
        return lines
