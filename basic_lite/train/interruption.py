"""Ctrl-C and SIGTERM: the step is finished, the run is saved, then it stops."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from basic_lite.console import Say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context in which the first signal sets ``requested`` and the second stops at once."""

    def __init__(self, say: Say, *, alone: bool) -> None:
        """
        Args:
            alone: no launcher has started this process. A launcher sends on the signal that the whole group has
                received, so there a second one means nothing; it kills what isn't done after a while of its own.
        """
        self.requested = False
        self._leaving = False
        self._alone = alone
        self._say = say
        self._process = os.getpid()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in SIGNALS:
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller owns the signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process forked from this one, which inherits the handler
            return
        if self._leaving:  # workers and files are being put away
            return
        if not self._alone:
            if not self.requested:
                self._say("stopping: finishing and saving this step, if the launcher allows the time")
            self.requested = True
            return
        if self.requested:
            self._leaving = True
            raise KeyboardInterrupt
        self.requested = True
        self._say("stopping: finishing and saving this step first (press Ctrl-C again to stop now without saving)")


def start_worker(_worker: int) -> None:
    """Start a data loader's worker that a signal to the whole group doesn't end.

    The main process needs its workers to finish the step. It ends them itself: by its queue, and where a traceback
    keeps that queue alive by SIGTERM, which torch and multiprocessing send once each. A worker whose main process is
    gone notices that within seconds.
    """
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received > 1:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handle)
