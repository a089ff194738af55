"""Ctrl-C and SIGTERM: the step is finished, the run is saved, then it stops."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from basic_lite.console import Say
from basic_lite.signals import STOPPING

_FIRST = "this step is finished first, evaluated where that is due, and saved"


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
        self._lost = False  # Python has dropped the second one's KeyboardInterrupt
        self._alone = alone
        self._say = say
        self._process = os.getpid()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in STOPPING:
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller owns the signals
                break
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._again
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._unraisable
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process forked from this one, which inherits the handler
            return
        if self._leaving:  # workers and files are being put away
            if self._lost:
                self._lost = False
                raise KeyboardInterrupt
            return
        if not self._alone:
            if not self.requested:
                self._say(f"stopping: {_FIRST}, if the launcher allows the time")
            self.requested = True
            return
        if self.requested:
            self._leaving = True
            raise KeyboardInterrupt
        self.requested = True
        self._say(f"stopping: {_FIRST} (press Ctrl-C again to stop now without saving)")

    def _again(self, lost: Any) -> None:
        """Raise anew what the second signal raised in a place where Python drops exceptions, as in a finalizer."""
        if not (self._leaving and isinstance(lost.exc_value, KeyboardInterrupt)):
            self._unraisable(lost)
            return
        self._lost = True
        # From another thread, since here it would be dropped as well.
        threading.Timer(0.02, _thread.interrupt_main, [next(iter(self._old))]).start()


def start_worker(_worker: int, *, ending: Any) -> None:
    """Start a data loader's worker: what a terminal or a scheduler sends to the whole group doesn't end it.

    The main process needs its workers to finish the step, and ends them itself, at exit by SIGTERM. A worker whose main
    process is gone ends by itself.

    Args:
        ending: shared with the main process; its ``value`` is true once the workers aren't needed any more.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if ending.value:
            os._exit(0)

    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else handle)
