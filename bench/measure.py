"""Timers, peak memory and this machine's own rates: what every number of the bench is made with."""

from __future__ import annotations

import gc
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from basic_lite.sizes import GIB

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "transformers", "peft", "bitsandbytes", "liger-kernel", "flash-linear-attention", "trl", "numpy",
    "pillow",
)  # fmt: skip

# A GPU row is timed for this long, after a warm-up; a CPU row as long as the caller says.
GPU_TIMED_MS = 200
MOST_REPEATS = 50
FEWEST_REPEATS = 3


@dataclass(frozen=True)
class Timing:
    """Quantiles of one piece of work's duration."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int


def timings(works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, Timing]:
    """Durations of several works on the same data; each has run before, so nothing is compiled or warmed here.

    On a GPU by device events, with the cache flushed before each run. On a CPU, where the bench runs one thread, by the
    processor time of this process: on an idle machine that is the wall clock, on a busy one (whose second thread would
    mostly be waited for) it is still nearly so. The works take turns, so that what remains of other load falls on all.

    Args:
        works: name → work.
        device: where they run.
        seconds: how long each is timed on a CPU; at least FEWEST_REPEATS runs.
    """
    if device.type != "cuda":
        return {name: timing_of(runs) for name, runs in take_turns(works, device, seconds).items()}
    from triton.testing import do_bench

    return {name: timing_of(do_bench(work, rep=GPU_TIMED_MS, return_mode="all")) for name, work in works.items()}


def take_turns(
    works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Each work's runs, round by round, in milliseconds. See ``timings``."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    rounds, spent = 0, 0.0
    while rounds < FEWEST_REPEATS or (rounds < MOST_REPEATS and spent < seconds * len(works)):
        for name, work in works.items():
            started = now(device)
            work()
            taken[name].append(1e3 * (now(device) - started))
            spent += taken[name][-1] / 1e3
        rounds += 1
    return taken


def now(device: torch.device) -> float:
    """Seconds: this process's processor time; of a GPU the wall clock, once all its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80."""
    numbers = torch.tensor(values, dtype=torch.float64)
    p20, p50, p80 = (float(numbers.quantile(q)) for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


def timing_of(runs_ms: Sequence[float]) -> Timing:
    return Timing(*quantiles(runs_ms), len(runs_ms))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes that ``work`` had allocated at once beyond what was there before, which it must not free.

    Run ``work`` once before on a GPU, so that library workspaces are there.
    """
    record = PeakRecord(device)
    work()
    return record.stop()


class PeakRecord:
    """Watches allocations from its making on: by a GPU's caching allocator, on a CPU by the allocator's own records."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self.device = device
        self._before = 0
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        else:
            self._profile.start()

    def stop(self) -> int:
        """Most bytes alive at once since then, beyond what was there."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_stats(self.device)["requested_bytes.all.peak"] - self._before
        self._profile.stop()
        events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(0, *accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """What there is between two steps: weights with their statistics, buffers, the optimizer's state."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        statistics = getattr(weight, "quant_state", None)
        while statistics is not None:
            tensors += [statistics.absmax, statistics.code, statistics.offset]
            statistics = statistics.state2
    return tensor_bytes([*tensors, *(value for state in optimizer.state.values() for value in state.values())])


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of the tensors among these, each storage once."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True)
class Rates:
    """What this machine reaches, measured in the same run as everything else: the floors are made of these."""

    copy_gb_per_s: float  # bytes read + bytes written
    gemm_tflops: float
    gemm: str  # type and shape of the product

    def copy_ms(self, moved_bytes: float) -> float:
        return moved_bytes / self.copy_gb_per_s / 1e6

    def gemm_ms(self, flops: float) -> float:
        return flops / self.gemm_tflops / 1e9


def measure_rates(device: torch.device, *, tiny: bool = False) -> Rates:
    """Copy bandwidth beyond every cache, and the rate of a large product (bf16 on a GPU, else float32)."""
    on_gpu = device.type == "cuda"
    elements = 2**20 if tiny else 2**28 if on_gpu else 2**26
    source = torch.randn(elements, device=device)
    copy = torch.empty_like(source)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    m, k, n = (64, 64, 64) if tiny else (8192, 8192, 8192) if on_gpu else (256, 4096, 8192)
    a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
    product = torch.empty(m, n, device=device, dtype=dtype)
    works = {"copy": lambda: copy.copy_(source), "gemm": lambda: torch.mm(a, b, out=product)}
    for work in works.values():
        work()
    times = timings(works, device, 0.01 if tiny else 1.0)
    return Rates(
        2 * source.nbytes / times["copy"].p50_ms / 1e6,
        2 * m * k * n / times["gemm"].p50_ms / 1e9,
        f"{str(dtype).removeprefix('torch.')} [{m}, {k}] × [{k}, {n}]",
    )


def cache_bytes(device: torch.device) -> int:
    """Bytes of a card's L2 cache; 0 on a CPU, whose caches aren't asked for."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def relative(value: Tensor, truth: Tensor) -> float:
    """Error relative to the size of the whole tensor; NaN counts as infinite."""
    error = float((value.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300))
    return math.inf if math.isnan(error) else error


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers. Zeros would flatter a GPU: they toggle no bits and cost less power."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=dtype)


def describe(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were made."""
    on_gpu = device.type == "cuda"
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU {_cpu_name()}, {os.cpu_count()} cores",
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "clock": "device events" if on_gpu else "processor time of one thread",
        "load_at_start": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        # torch's own says which build it is, too.
        "versions": {name: _version(name) for name in PACKAGES} | {"torch": torch.__version__},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        about["capability"] = f"{properties.major}.{properties.minor}"
        about["gpu_memory_gib"] = round(properties.total_memory / GIB, 1)
        about["allocator"] = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    return about


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit, with "-dirty" behind it where something isn't committed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
