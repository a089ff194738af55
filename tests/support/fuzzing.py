"""Odd inputs, and what must hold for each: it works, or there is one short error, soon, and nothing else is touched."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from basic_lite.errors import UserError

# Part 0 is the plain run's; the others have other inputs, so a long run can be made in pieces (-k "part3-").
PARTS = [pytest.param(n, id=f"part{n}-", marks=pytest.mark.soak if n else ()) for n in range(21)]
SECONDS, BYTES, CHARACTERS = 5.0, 2**30, 2000
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Every error says what mends it: an order, a command, or what is wanted.
MENDS = re.compile(
    r"\b(add|ask|choose|close|connect|copy|correct|count|delete|download|evaluate|expected|fetch|fix|give|indent|"
    r"install|keep|leave|list|make|mean|move|must|name|nearest|put|remove|rename|repeat|restore|save|say|set|shorten|start|take|"
    r"train|unpack|use|want|write|only|see|basic-lite)\b",
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
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
_LEAVES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "socket.connect"}


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
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            self._look(event, args[0])
        elif event in _CHANGES:
            for name in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
                self._look(event, name)

    def _look(self, event: str, name: Any) -> None:
        if isinstance(name, int):  # it is open already
            return
        path = os.path.abspath(os.fsdecode(name))
        own = path.startswith((str(self.inside), os.path.realpath(str(self.inside))))
        if not own and path != os.devnull and "__pycache__" not in path:
            self.found.append(f"{event} {path}")


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


@contextmanager
def soon_or_one_error(folder: Path, places: Sequence[str] = ()) -> Iterator[None]:
    """What these suites are about.

    Args:
        folder: nothing outside it may be written.
        places: one of them must be named by an error.
    """
    started, before = time.process_time(), peak_bytes()
    WATCH.inside, WATCH.found = str(folder), []
    try:
        yield
    except UserError as error:
        require_good(str(error), places)
    finally:
        WATCH.inside = None
    assert not WATCH.found, WATCH.found
    assert time.process_time() - started < SECONDS
    assert peak_bytes() - before < BYTES


def tried(
    strategy: st.SearchStrategy[Any], count: int, act: Callable[[Any], None], folder: Path, part: int,
    places: Sequence[str] = (),
) -> None:  # fmt: skip
    """Try ``count`` inputs; the same ones each time, others in each part."""

    @seed(part)
    @settings(max_examples=count, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(strategy)
    def each(value: Any) -> None:
        with soon_or_one_error(folder, places):
            act(value)

    _forget_peak()
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
