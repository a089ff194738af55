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
    change: Interval | None = None  # of the loss, where BASIC's pull was tried

    @property
    def why_shut(self) -> str:
        """Why BASIC is off after it."""
        if self.verdict == "holds":
            return "its premise holds here, but its pull wasn't seen to lower the loss"
        return "its premise fails here" if self.verdict == "fails" else "its premise isn't shown here"

    @property
    def text(self) -> str:
        """The numbers in words."""
        if self.gain is None:
            return f"no interval from {self.samples} samples, step {self.step}"
        others = "" if self.again is None else f", and {self.again.text} over others"
        tried = "" if self.change is None else f"; its pull changes the loss by {pull_text(self.change)}"
        return f"gain of v̂ over v {self.gain.text} over {self.samples} samples{others}{tried}, step {self.step}"


def looks_in(log: Iterable[dict[str, Any]]) -> list[GateLook]:
    """Those that opened or shut a gate, in the log's order."""
    looks = []
    for line in log:
        look = line.get("gate") or {}
        if look.get("open") is not None:  # else it only chose the target
            found = [look["gain"], look.get("gain_again"), look.get("loss_change")]
            gain, again, change = (None if one is None else Interval(*one) for one in found)
            looks.append(GateLook(line["step"], look["open"], look["verdict"], gain, look["samples"], again, change))
    return looks


def pull_text(change: Interval) -> str:
    """How the loss changed where BASIC's pull was tried; a small move changes it little, so with two digits."""
    value, low, high = (f"{round(one, 12) + 0.0:+.2g}" for one in change)
    return f"{value} nats a token [{low}, {high}]"
