"""Things that hang together, also by way of others: each group goes by the number of its first one."""

from collections.abc import MutableSequence

import numpy as np
from numpy.typing import NDArray

# Of each thing the number of one of its group, in the end of the first; at the start its own.
Parents = MutableSequence[int] | NDArray[np.int64]


def first_of(parents: Parents, place: int) -> int:
    """The first one of a thing's group."""
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def join(parents: Parents, one: int, other: int) -> None:
    """Make one group of those of two things."""
    first, second = first_of(parents, one), first_of(parents, other)
    parents[max(first, second)] = min(first, second)
