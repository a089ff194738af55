"""The signals that ask a program to stop."""

import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

# Windows has SIGBREAK (Ctrl-Break) besides, and no program is sent SIGTERM there.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


def stop_in_order() -> None:
    """From now on the first Ctrl-C or SIGTERM is a KeyboardInterrupt."""
    with suppress(ValueError):  # not in the main thread: the caller owns the signals
        for number in STOPPING:
            signal.signal(number, _interrupt_once)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    """The first Ctrl-C or SIGTERM stops; more of them, by an impatient hand, don't break into the stopping."""
    for one in STOPPING:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt
