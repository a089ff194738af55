"""What the garbage collector passes over while steps are made, and that it is given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from basic_lite.run import train
from basic_lite.training import loop
from basic_lite.training.garbage import PYTHONS_OWN, set_aside
from tests.support.runs import quiet, tiny_recipe, write_data


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    """The test session has frozen what it imported."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    yield
    gc.unfreeze()
    if frozen:
        gc.freeze()


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.long
def test_what_was_there_is_passed_over_and_new_cycles_are_collected() -> None:
    with set_aside():
        assert gc.get_freeze_count() > 10_000 and gc.isenabled()
        knot = weakref.ref(Knot())
        gc.collect()
        assert knot() is None
    assert gc.get_freeze_count() < PYTHONS_OWN
    kept = Knot()
    gone = weakref.ref(kept)
    with pytest.raises(ValueError), set_aside():
        raise ValueError
    del kept
    gc.collect()
    assert gone() is None and gc.get_freeze_count() < PYTHONS_OWN, "an error gives it back too"


def test_a_run_sets_aside_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    turn = loop.Loop._turn

    def counted(self: loop.Loop, *args: Any) -> None:
        counts.append(gc.get_freeze_count())
        turn(self, *args)

    monkeypatch.setattr(loop, "set_aside", set_aside)  # in tests it is a null context
    monkeypatch.setattr(loop.Loop, "_turn", counted)
    write_data(tmp_path, 4)
    train(tiny_recipe(tmp_path, {"training.max_steps": 2}), console=quiet())
    assert len(counts) == 2 and min(counts) > 10_000 and gc.get_freeze_count() < PYTHONS_OWN


def test_a_program_that_froze_objects_keeps_the_say() -> None:
    gc.freeze()
    count = gc.get_freeze_count()
    with set_aside():
        assert gc.get_freeze_count() <= count
    assert gc.get_freeze_count() > 0
