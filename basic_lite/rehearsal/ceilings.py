"""The ceilings of this machine's device, measured: products, bytes and launches a second."""

import time
from collections.abc import Callable
from functools import cache

import torch

from basic_lite.cards import Card, named_card
from basic_lite.model.device import power_limit_watts
from basic_lite.sizes import GIB, MIB

TIMING_S = 0.2
# What the host takes to start an operation, with the Python of transformers, PEFT and bitsandbytes around it. Measured
# as a micro-batch's time over its counted operations, where the host was the bottleneck: 7B beside an H200 47 and 53 µs
# where a plain addition took 7.1, and 79 half an hour later; on two cores of an AMD EPYC 18 to 26.
ADDITIONS_A_LAUNCH = 7
COPIED_BYTES = {"cuda": 256 * MIB, "cpu": 64 * MIB}


@cache
def measured_card(device: torch.device, dtype: torch.dtype) -> Card:
    """This machine's device, its ceilings measured in less than a second, once."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "this CPU"
    gib = torch.cuda.get_device_properties(device).total_memory / GIB if cuda else 0.0
    link = _link(device) if cuda else 0.0
    flops, moved, watts = products_a_second(device, dtype), _copied(device), _watts(device, name) if cuda else 0.0
    launch_s = ADDITIONS_A_LAUNCH * _addition_s(device)
    return Card(name, flops / 1e12, moved / 1e9, link / 1e9, gib, watts, measured=True, launch_s=launch_s)


def _watts(device: torch.device, name: str) -> float:
    """What a card here may draw, by its driver, else by the table; 0: neither says."""
    card = named_card(name)
    return power_limit_watts(device) or (card.watts if card is not None else 0.0)


def products_a_second(device: torch.device, dtype: torch.dtype) -> float:
    """Time products of two square matrices on a device for a fifth of a second at most.

    The matrices come from a generator of their own: the run's numbers stay what they are.
    """
    size = 4096 if device.type == "cuda" else 512
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(size, size, generator=generator).to(device, dtype)
    out = a @ a  # the first one loads libraries
    return 2.0 * size**3 * _times_a_second(lambda: torch.mm(a, a, out=out), device)


def _copied(device: torch.device) -> float:
    """Bytes of the device's memory that are read and written in a second."""
    size = COPIED_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size * _times_a_second(lambda: target.copy_(source), device)


def _link(device: torch.device) -> float:
    """Bytes a second from pinned host memory to the device."""
    size = COPIED_BYTES["cuda"]
    source, target = torch.ones(size, dtype=torch.uint8).pin_memory(), torch.empty(size, dtype=torch.uint8).to(device)
    return size * _times_a_second(lambda: target.copy_(source, non_blocking=True), device)


def _addition_s(device: torch.device) -> float:
    """Seconds that the host takes for a small addition that makes a new tensor, the least of five tries."""
    a, count = torch.ones(64, device=device), 500
    tries = []
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            a + a
        tries.append((time.perf_counter() - started) / count)
    return min(tries)


def _times_a_second(work: Callable[[], object], device: torch.device) -> float:
    work()
    _wait(device)
    started, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < TIMING_S / 2 or not count:
        work()
        _wait(device)
        count += 1
    return count / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
