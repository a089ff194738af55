"""What one process of ``beside_trl`` measures: times, memory, and what the first step's samples were."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure
from bench.trl_task import GLOBAL_BATCH, MICRO_BATCH, Task

WARM_UP = 2


@dataclass
class Measured:
    """What one process measured. Times are of whole steps, data loading and logging included, warm-up left out.

    ``resident_bytes``: the most that was resident before the profiled step, beyond what was when training began; pages
    of libraries, which are read in when they are first needed, are not counted.
    ``tensor_bytes``: the most that tensors took in one step, on top of ``held_bytes``, those alive between steps
    (weights, optimizer state). On a GPU ``tensor_bytes`` + ``held_bytes`` is the caching allocator's peak.
    """

    who: str
    processor_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    resident_bytes: int = 0
    held_bytes: int = 0
    tensor_bytes: int = 0
    labelled: int = 0
    tokens: int = 0
    digest: str = ""
    trained: int = 0


class FirstStep:
    """Wraps a collator and notes what the first step's samples are: tokens, labels, a digest of both."""

    def __init__(self, collator: Callable[..., Any], found: Measured) -> None:
        self.collator, self.found = collator, found
        self.left = GLOBAL_BATCH // MICRO_BATCH

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collator(samples)
        if self.left:
            self.left -= 1
            kept = batch["attention_mask"].bool()
            ids, labels = batch["input_ids"][kept], batch["labels"][kept]
            self.found.tokens += len(ids)
            self.found.labelled += int((labels != -100).sum())
            content = self.found.digest.encode() + ids.numpy().tobytes() + labels.numpy().tobytes()
            self.found.digest = hashlib.sha256(content).hexdigest()
        return batch


class Stopwatch:
    """Measures a run from one update of the optimizer to the next. The last step is profiled, not timed."""

    def __init__(self, found: Measured, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.found, self.task, self.model, self.step = found, task, model, 0
        self.record: Any = None
        draw_adapters(model)
        found.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        optimizer.register_step_post_hook(lambda *_: self._stepped())
        gc.collect()
        self.resident = reset_resident_peak()
        self.before = self._now()

    def _stepped(self) -> None:
        now = self._now()
        self.step += 1
        if WARM_UP < self.step < self.task.steps:
            self.found.processor_ms.append(1e3 * (now[0] - self.before[0]))
            self.found.wall_ms.append(1e3 * (now[1] - self.before[1]))
        if self.step == self.task.steps - 1:
            self.found.resident_bytes = resident_peak() - self.resident
            self._record_last_step()
        elif self.step == self.task.steps:
            self._read_record()
        self.before = self._now()

    def _now(self) -> tuple[float, float]:
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def _record_last_step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None  # as either side does next: the record begins without them
        gc.collect()
        if self.task.device == "cuda":
            self.found.held_bytes = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        self.found.held_bytes = bytes_of_tensors()
        self.record = measure.memory_record()
        self.record.start()

    def _read_record(self) -> None:
        if self.task.device == "cuda":
            self.found.tensor_bytes = torch.cuda.max_memory_allocated() - self.found.held_bytes
            return
        self.record.stop()
        self.found.tensor_bytes = measure.peak_of(self.record)


def draw_adapters(model: nn.Module) -> None:
    """Give LoRA's A the same values on both sides (B is zero), so that losses agree beyond the first step."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            place = name[name.index("layers.") :]
            seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "little")
            values = measure.draw(*parameter.shape, device=torch.device("cpu"), seed=seed) / parameter.shape[1] ** 0.5
            with torch.no_grad():
                parameter.copy_(values)


def bytes_of_tensors() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # By type: asking lazy modules for their class would import them.
        if issubclass(type(thing), Tensor) and thing.device.type == "cpu":
            with suppress(RuntimeError, NotImplementedError):  # no storage of its own
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def reset_resident_peak() -> int:
    """Give freed memory back, start the peak anew, and say how many bytes are resident. Linux; elsewhere 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") - _status("RssFile")


def resident_peak() -> int:
    """The most bytes resident at once since ``reset_resident_peak``; file pages, which only grow, left out."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
