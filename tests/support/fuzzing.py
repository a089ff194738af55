"""Odd inputs, and what must hold for each: it works, or there is one short error, soon, and nothing else is touched.

What is touched is what Python tells its audit hooks. They don't hear what a library in C writes or sends by itself, nor
a file that is named relative to another open folder. A library in C that never comes back isn't broken off.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from basic_lite.errors import UserError

# Part 0 is the plain run's; the others have other inputs, so a long run can be made in pieces (-k "part3-").
PARTS = [pytest.param(n, id=f"part{n}-", marks=pytest.mark.soak if n else ()) for n in range(21)]
# Of the processor, and of the clock: a machine may have much else to do.
SECONDS, CLOCK = 5.0, 20
BYTES, CHARACTERS = 2**30, 2000
# Without Phase.explain: it traces, and Python 3.11 may then never return from a call.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Every error says what mends it: an order at the start of a part of a sentence, a command, or what is wanted.
MENDS = re.compile(
    r"(?:^|[;:.,?]\s|\b(?:or|and|then)\s)"
    r"(?:add|ask|choose|close|connect|copy|correct|count|delete|download|evaluate|fetch|fix|give|indent|install|keep|"
    r"leave|list|make|move|name|put|remove|rename|repeat|restore|save|say|see|set|shorten|start|take|train|unpack|use|"
    r"write)\b"
    r"|[;`]\s?basic-lite [a-z-]|\bmust (?:be|have)\b|\bexpected [^\n]*, found\b"
    r"|\b(?:did you mean|goes in quotes)\b",
    re.IGNORECASE,
)

ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, False, 0, -1, 2**70, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\0", "\x1b[31m",
        "\ud800", "[/b]", "\n", "..", "/", "~",
        "a" * 5000, "</s>" * 50, "<image>", "<image>" * 9, "<|im_end|>", "0.png",
        "../0.png", "file://[", "data:image/png;base64,AAAA", "http://a/b.png", "[" * 2000, "{" * 2000, "9" * 4400,
        [], {}, [[]], {"bytes": "x"}, {"bytes": None, "path": 3}, {"url": []}, {"a": {"b": []}}, [None], ["0.png"],
    ]
)  # fmt: skip
ANY = st.recursive(
    ODD | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of Python's audit events: those that change a file by its name, and those that leave this process.
_NAMES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
_CHANGES = {"os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", *_NAMES}
_LEAVES = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
}  # fmt: skip


class Watch:
    """Notes what is written outside a folder, and programs and connections that are started."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.found: list[str] = []

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in _LEAVES:
            self.found.append(f"{event} {args[:2]}")
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING and not _is_nameless(args[0]):
            self._look(event, args[0])
        elif event in _CHANGES:
            # What a link leads to isn't touched when it is made.
            both = {"os.rename": args[:2], "os.link": args[:2], "os.symlink": args[1:2]}
            for name in both.get(event, args[:1]):
                self._look(event, name, args[1] if event in ("os.remove", "os.rmdir") else -1)

    def _look(self, event: str, name: Any, folder: int = -1) -> None:
        if isinstance(name, int):  # it is open already
            return
        path = os.path.abspath(os.fsdecode(name))
        if folder >= 0:  # named relative to an open folder
            path = os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), os.fsdecode(name))
        # A link itself is made, renamed or removed; all else happens where it leads to.
        above, last = os.path.split(path)
        real = os.path.join(os.path.realpath(above), last) if event in _NAMES else os.path.realpath(path)
        inside = os.path.realpath(str(self.inside))
        own = real == inside or real.startswith(inside + os.sep)
        if not own and path != os.devnull and "__pycache__" not in path.split(os.sep):
            self.found.append(f"{event} {path}")


def _is_nameless(place: Any) -> bool:
    """Whether a file without a name is made in a folder; a folder itself is never opened to be written."""
    return isinstance(place, str | bytes | os.PathLike) and os.path.isdir(place)


WATCH = Watch()
sys.addaudithook(WATCH.hear)


def peak_bytes() -> int:
    """The most memory that this process has had; 0 where the system doesn't say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")


def require_good(text: str, places: Sequence[str] = ()) -> None:
    """What holds for the text of an error: short, fit to print, with the place and what mends it."""
    text.encode("utf-8")
    assert 0 < len(text) <= CHARACTERS and not UNFIT.search(text), text
    assert MENDS.search(text), f"says nothing to do: {text}"
    assert not places or any(one in text for one in places), f"names none of {places}: {text}"


class Endless(BaseException):
    """An input took too long. No ``except Exception`` of what is tried takes it, and no other input is tried."""


@contextmanager
def _broken_off(what: object) -> Iterator[None]:
    """Break off what has no end, and name it, where the system has such an alarm."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Endless(f"after {CLOCK} s there was no end of {what!r:.{CHARACTERS}}")

    before = signal.signal(signal.SIGALRM, ring)
    # Again each second: the first may come in a place that an error can't leave.
    signal.setitimer(signal.ITIMER_REAL, CLOCK, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def soon_or_one_error(folder: Path, places: Sequence[str] = (), what: object = None) -> Iterator[None]:
    """What these suites are about.

    Args:
        folder: nothing outside it may be written.
        places: one of them must be named by an error.
        what: the input, to be named where it has no end.
    """
    _forget_peak()
    # The program's own time: what the system takes for fresh memory differs tenfold between machines.
    started, clock, before = os.times().user, time.monotonic(), peak_bytes()
    WATCH.inside, WATCH.found = str(folder), []
    try:
        with _broken_off(what):
            yield
    except UserError as error:
        require_good(str(error), places)
    finally:
        WATCH.inside = None
    assert not WATCH.found, WATCH.found
    assert os.times().user - started < SECONDS
    assert time.monotonic() - clock < CLOCK
    assert peak_bytes() - before < BYTES


def tried(
    strategy: st.SearchStrategy[Any], count: int, act: Callable[[Any], None], folder: Path, part: int,
    places: Sequence[str] = (),
) -> None:  # fmt: skip
    """Try ``count`` inputs; the same ones each time, others in each part."""

    @seed(part)
    @settings(max_examples=count, suppress_health_check=list(HealthCheck), deadline=None, database=None, phases=PHASES)
    @given(strategy)
    def each(value: Any) -> None:
        with soon_or_one_error(folder, places, value):
            act(value)

    each()


def edited(data: bytes, edit: tuple[int, int, bytes]) -> bytes:
    """The bytes with some of them in place of others."""
    start, length, new = edit
    start %= len(data) + 1
    return data[:start] + new + data[start + length :]


EDIT = st.tuples(st.integers(0, 100_000), st.integers(0, 60), st.binary(max_size=12))


def json_bytes(value: Any) -> bytes:
    """A value as JSON, as Python's writer has it: NaN and halves of characters too."""
    import json

    return json.dumps(value).encode()
