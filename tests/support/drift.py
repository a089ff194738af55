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
# The first and the last of a series are a tenth of it each, but at least so many values.
_FEWEST = 5
# The ends of a series of times are compared with this many standard deviations: 99.7 %.
_Z_ENDS = 3.0


@dataclass(frozen=True)
class Growth:
    """What a series gains from its start to its end, as a share, with an interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:+.2%} [{self.low:+.2%}, {self.high:+.2%}]"


def growth(values: Sequence[float]) -> Growth:
    """The growth of evenly spaced values, by the median of all pairs' slopes.

    A few values that stand out move it little, and so does growth that begins late: `between_ends` sees that. The share
    is of the median. The interval, 95 %, is by Kendall's variance (P. K. Sen, J. Am. Stat. Assoc. 63, 1968, section 3).
    """
    slopes = sorted((values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2))
    n, count = len(values), len(slopes)
    half = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    whole = (n - 1) / float(np.median(values))
    return Growth(float(np.median(slopes)) * whole, slopes[low] * whole, slopes[high] * whole)


def between_ends(values: Sequence[float]) -> Growth:
    """What the last tenth has more than the first, by the median of all quotients of a last and a first value.

    The interval, 99.7 %, is by the variance of the rank sum (E. L. Lehmann, Ann. Math. Stat. 34, 1963). With five
    values on each side it has all quotients in it.
    """
    size = max(_FEWEST, len(values) // 10)
    first, last = values[:size], values[-size:]
    shares = sorted(after / before - 1 for after in last for before in first)
    m, n, count = len(first), len(last), len(shares)
    half = _Z_ENDS * math.sqrt(m * n * (m + n + 1) / 12)
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    return Growth(float(np.median(shares)), shares[low], shares[high])


def more(counts: Sequence[int]) -> str | None:
    """How the last quarter of a series has more than the first, in words; None: it hasn't.

    One look of a quarter may stand out, up or down. It has more where its peak is higher, or where it never comes down
    to what the first quarter mostly has: after an early peak only that tells.
    """
    size = max(1, len(counts) // 4)
    first, last = sorted(counts[:size]), sorted(counts[-size:])
    aside = 1 if size >= 4 else 0
    if last[-1 - aside] > first[-1 - aside]:
        return f"{first[-1 - aside]} at most in the first quarter, {last[-1 - aside]} in the last"
    if last[aside] > (usual := float(np.median(first))):
        return f"{usual:g} mostly in the first quarter, {last[aside]} at least in the last"
    return None


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

    def findings(self, *, level: float = 0.01, slower: float = 0.05, much_slower: float = 0.25) -> list[str]:
        """What grows, in words; nothing where all is flat.

        Args:
            level: memory may grow by this share, over the run and from its first tenth to its last.
            slower: so may times over the run; beyond doubt, since noise is in them.
            much_slower: so may times from the first tenth to the last; beyond doubt. It is more, since a tenth may
                fall on minutes in which the whole machine is slow.
        """
        found = [f"{name}: {grown}" for name, one in self.levels.items() if (grown := growth(one)).share > level]
        found += [
            f"{name}: {grown} from the first tenth to the last"
            for name, one in self.levels.items()
            if (grown := between_ends(one)).share > level
        ]
        found += [f"{name}: {words}" for name, some in self.counts.items() if (words := more(some))]
        for name, times in self.seconds.items():
            if (grown := growth(medians(times))).low > slower:
                found.append(f"time of {name}: {grown}")
            if (grown := between_ends(times)).low > much_slower:
                found.append(f"time of {name}: {grown} from the first tenth to the last")
        return found

    def figures(self) -> list[str]:
        """All series in a line each; behind a semicolon what the last tenth has more than the first."""
        lines = [
            f"{name}: {growth(one)}; {between_ends(one)}, {one[0]:,.0f} → {one[-1]:,.0f}"
            for name, one in self.levels.items()
        ]
        lines += [f"{name}: {one[0]} → {one[-1]}, at most {max(one)}" for name, one in self.counts.items()]
        for name, times in self.seconds.items():
            some, ends = medians(times), between_ends(times)
            lines.append(f"time of {name}: {growth(some)}; {ends}, {some[0]:.3g} → {some[-1]:.3g}, {len(times)} times")
        return lines
