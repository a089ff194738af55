"""What a run's log says of the gate's looks. One verdict a run: where a gate judges, nothing else does."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from basic_lite.resampling import Interval


@dataclass(frozen=True)
class GateLook:
    """What the gate found at a step."""

    step: int
    open: bool
    verdict: str
    gain: Interval | None
    samples: int
    again: Interval | None = None  # the gain on other samples; None: they weren't asked

    @property
    def text(self) -> str:
        """The numbers in words."""
        if self.gain is None:
            return f"no interval from {self.samples} samples, step {self.step}"
        others = "" if self.again is None else f", and {self.again.text} over others"
        return f"gain of v̂ over v {self.gain.text} over {self.samples} samples{others}, step {self.step}"


def looks_in(log: Iterable[dict[str, Any]]) -> list[GateLook]:
    """Those that opened or shut a gate, in the log's order."""
    looks = []
    for line in log:
        look = line.get("gate") or {}
        if look.get("open") is not None:  # else it only chose the target
            gains = [None if gain is None else Interval(*gain) for gain in (look["gain"], look.get("gain_again"))]
            looks.append(GateLook(line["step"], look["open"], look["verdict"], gains[0], look["samples"], gains[1]))
    return looks
