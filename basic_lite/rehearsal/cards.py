"""Cards and their ceilings: products, bytes and launches a second, from data sheets or measured on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from basic_lite.sizes import GIB, MIB

TIMING_S = 0.2
# What PyTorch takes on the host to start an operation, with transformers' and PEFT's own Python around it. Assumed.
LAUNCH_S = 8e-6
COPIED_BYTES = {"cuda": 256 * MIB, "cpu": 64 * MIB}


@dataclass(frozen=True)
class Card:
    """What a card can do at most.

    Attributes:
        tflops: products a second, in 10¹², in the type that ``model.dtype: auto`` takes.
        bytes_a_second: of its memory, in 10⁹, reads and writes together.
        link_a_second: between it and the host's pinned memory, in 10⁹ bytes; 0: it is the host.
        gib: its memory as it is sold.
        watts: of the board at most.
    """

    name: str
    tflops: float
    bytes_a_second: float
    link_a_second: float
    gib: float
    watts: float


# Dense, summed in float32: NVIDIA's whitepapers of GA102 (3090: 71), AD102 (4090: 165.2) and Blackwell RTX (5090:
# 209.5). A GeForce has twice its float32 rate in them, which gives the 3060 (12.7) and the 4060 Ti (22.1) theirs. The
# T4 has no bfloat16, so `auto` is float32 there: 8.1 by its data sheet. Bytes are the data sheets' too. The link is
# four fifths of what PCIe 3, 4 and 5 carry over a card's 8 or 16 lanes.
CARDS = (
    Card("T4", 8.1, 320, 12.6, 16, 70),
    Card("RTX 3060", 25.5, 360, 25.2, 12, 170),
    Card("RTX 4060 Ti", 44.1, 288, 12.6, 16, 165),
    Card("RTX 3090", 71.2, 936, 25.2, 24, 350),
    Card("RTX 4090", 165.2, 1008, 25.2, 24, 450),
    Card("RTX 5090", 209.5, 1792, 50.4, 32, 575),
)


def card_of(gib: float) -> Card:
    """The fastest card of the table with the least memory that is enough; the largest one where none is."""
    enough = [card for card in CARDS if card.gib >= gib - 0.5] or [max(CARDS, key=lambda card: card.gib)]
    least = min(card.gib for card in enough)
    return max((card for card in enough if card.gib == least), key=lambda card: card.tflops)


def measured_card(device: torch.device, dtype: torch.dtype) -> Card:
    """This machine's device, its ceilings measured in less than a second."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "this CPU"
    gib = torch.cuda.get_device_properties(device).total_memory / GIB if cuda else 0.0
    link = _link(device) if cuda else 0.0
    return Card(name, products_a_second(device, dtype) / 1e12, _copied(device) / 1e9, link / 1e9, gib, 0.0)


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
