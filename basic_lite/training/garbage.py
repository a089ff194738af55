"""What Python's garbage collector looks at while steps are made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Python 3.12 counts what lives for ever as frozen, some hundreds of objects; a program that freezes has more.
PYTHONS_OWN = 5_000


@contextmanager
def set_aside() -> Iterator[None]:
    """Let the collector pass over what there is now: libraries, the model, lists of data. New objects it collects.

    A full pass looks at every object that lives: .26 s with the libraries and a model of 32 layers, once in 12 steps of
    two micro-batches (a core of an AMD EPYC); with this 1 ms. What is set aside is freed as ever when nothing refers to
    it; only cycles wait for the end. A program that has frozen objects itself (``gc.freeze``) keeps the say: unfreezing
    ours would unfreeze its own too.
    """
    if gc.get_freeze_count() > PYTHONS_OWN:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
