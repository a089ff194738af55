"""A number step by step, in 16 bytes a step: a list of pairs would take 120."""

from array import array
from collections.abc import Sequence
from typing import overload


class Points(Sequence[tuple[int, float]]):
    """Pairs of a step and a value, in the order in which they were added."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a pair at the end."""
        self._steps.append(step)
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, float]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, float] | Sequence[tuple[int, float]]:
        if isinstance(index, slice):
            return list(zip(self._steps[index], self._values[index], strict=True))
        return self._steps[index], self._values[index]
