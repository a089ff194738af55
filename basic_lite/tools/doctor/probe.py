"""A look at the machine in a process of its own: it may crash or hang, and the doctor goes on."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from basic_lite.printable import one_line

# Before the answer: libraries print to stdout too.
MARK = "basic-lite doctor:"
# Seconds that a process may take to end after it was killed. One that waits for a driver doesn't end at all.
_GRACE_S = 2.0
# The search path is the doctor's own, whatever lies in the folder it was started in.
_START = "import sys; sys.path[:] = sys.argv[2:]; from basic_lite.tools.doctor.looks import main; main(sys.argv[1])"
_MOST_OF_REASON = 150
_HOMES = re.compile(r"(/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\":]+")


@dataclass(frozen=True)
class Answer:
    """What a look found.

    Attributes:
        facts: by name; empty where the look failed as a whole.
        failure: why it failed; empty where it didn't.
        seconds: that it took.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0


def ask(name: str, most_s: float, command: Sequence[str] | None = None) -> Answer:
    """Run one of the looks in ``looks.py``, for at most ``most_s`` seconds.

    Args:
        command: in place of it.
    """
    start = time.monotonic()
    command = command or [sys.executable, "-c", _START, name, *sys.path]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            errors="replace", env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
    except OSError as error:
        return Answer(failure=f"Python can't be started again ({error.strerror or type(error).__name__})")
    try:
        out, err = process.communicate(timeout=most_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE_S)
        return Answer(failure=f"no answer in {most_s:.0f} s", seconds=time.monotonic() - start)
    answers = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    if process.returncode or not answers:
        return Answer(failure=_why(process.returncode, err), seconds=time.monotonic() - start)
    return Answer(json.loads(answers[-1]), seconds=time.monotonic() - start)


def _why(status: int, err: str) -> str:
    """Why a process ended without an answer: its last words, or how it was ended."""
    words = [line.strip() for line in err.splitlines() if line.strip()]
    if status < 0:
        return f"it crashed (signal {-status})"
    return without_names(words[-1]) if words else f"it ended with status {status} and without a word"


def without_names(text: str) -> str:
    """A short line without the folders of people, and without the name of this one."""
    home, user = os.path.expanduser("~"), os.environ.get("USER") or os.environ.get("USERNAME") or ""
    if len(home) > 1:
        text = text.replace(home, "~")
    text = _HOMES.sub("~", text)
    if len(user) > 2 and user != "root":
        text = re.sub(rf"\b{re.escape(user)}\b", "USER", text)
    return one_line(" ".join(text.split()), _MOST_OF_REASON)
