"""An end for programs that others wrote: a chat template that loops would render for ever, or fill the memory."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from basic_lite.errors import NoMemory
from basic_lite.outside import read_file
from basic_lite.sizes import size_text

if sys.platform == "linux":
    import resource

# Sizes of this process in pages, that of its address space first.
_SIZES = Path("/proc/self/statm")


class TookTooLong(BaseException):
    """The work was broken off. No ``except Exception`` of the work itself takes it; one in a ``__del__`` is lost."""


class _Watch:
    """One thread looks, now and then, whether the work of others has taken too long, and breaks it off.

    To start a thread for each work would take longer than most of them. Python has no other way to break off code that
    runs in its own thread: a signal comes only to the main one, and isn't known on Windows.
    """

    def __init__(self) -> None:
        self.process = os.getpid()  # a fork has no threads
        self.lock = threading.Lock()
        self.due: dict[int, float] = {}  # thread → when its work must be done
        try:
            threading.Thread(target=self._look, name="time limit", daemon=True).start()
        except RuntimeError as error:
            raise NoMemory(
                f"this process can't start a thread ({error}): a limit on it is too low; raise that (`ulimit -v "
                "unlimited`, `ulimit -u unlimited`)"
            ) from error

    def _look(self) -> None:
        while True:
            time.sleep(0.25)
            with self.lock:
                late = [thread for thread, end in self.due.items() if time.monotonic() > end]
                for thread in late:
                    del self.due[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLong))


_watch: _Watch | None = None


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Around Python code that may have no end.

    Raises:
        TookTooLong: it took more than ``seconds``, and is broken off between two of its instructions.
        NoMemory: the thread that looks can't be started.
    """
    global _watch
    if _watch is None or _watch.process != os.getpid():
        _watch = _Watch()
    watch, thread = _watch, threading.get_ident()
    with watch.lock:
        watch.due[thread] = time.monotonic() + seconds
    try:
        yield
    finally:
        with watch.lock:
            if watch.due.pop(thread, None) is None:  # it was told, and may be about to hear of it
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


@contextmanager
def at_most_bytes(count: int) -> Iterator[None]:
    """Around code that may ask for any amount of memory. Only on Linux, and only in the main thread, there is a limit.

    The limit is the process's, so ``count`` must leave room for what other threads take meanwhile.

    Raises:
        MemoryError: the process's address space would have grown by more than ``count`` bytes.
        NoMemory: it would have, and a limit that the process has anyway (``ulimit -v``) leaves it less than ``count``.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(read_file(_SIZES).split()[0]) * resource.getpagesize()
    own = count if soft == resource.RLIM_INFINITY else soft - taken
    try:  # Ctrl-C may come right after the limit is set
        resource.setrlimit(resource.RLIMIT_AS, (taken + min(count, own), hard))
        yield
    except MemoryError as error:
        if own >= count:
            raise
        raise NoMemory(
            f"a limit on this process leaves it {size_text(max(0, own))} of memory, and that wasn't enough; raise it "
            "(`ulimit -v unlimited`)"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
