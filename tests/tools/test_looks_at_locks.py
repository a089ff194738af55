"""Whether a run is trained is seen by taking its lock for a moment: that look stops no other program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from basic_lite.errors import UserError
from basic_lite.tools.clean import clean
from basic_lite.tools.runs import is_running
from basic_lite.training.lock import locked
from basic_lite.training.places import LOCK
from tests.support.runs import quiet


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A start that saved nothing."""
    (tmp_path / "parts.json").write_text('[{"part": "LLM"}]')
    (tmp_path / LOCK).touch()
    return tmp_path


@contextmanager
def a_look(run: Path) -> Iterator[None]:
    """Another program, such as `basic-lite runs`, has the lock, and lets it go a moment later."""
    held = threading.Event()

    def look() -> None:
        with FileLock(run / LOCK):
            held.set()
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(look)
        assert held.wait(10)
        yield
        over.result()


def train(run: Path) -> bool:
    with locked(run):
        return True


@pytest.mark.parametrize(
    "work",
    [lambda run: not is_running(run), train, lambda run: clean([run], yes=True, console=quiet()) > 0],
    ids=["is_running", "train", "clean"],
)
def test_a_look_of_another_program_is_no_training(started: Path, work: Callable[[Path], bool]) -> None:
    """In the moment of such a look `run` and `export` said that a process trains there; `clean` deleted nothing."""
    with a_look(started):
        assert work(started)


def test_a_training_is_seen(started: Path) -> None:
    with locked(started):
        assert is_running(started)
        assert clean([started], yes=True, console=quiet()) == 0
        with pytest.raises(UserError, match="another process trains in"):
            train(started)
