"""Which of a test's cases a plain run has."""

from __future__ import annotations

from typing import Any

import pytest


def rest_long(first: Any, *rest: Any) -> list[Any]:
    """Cases of a test: the first in a plain run, the others with the long tests. A tuple has a value for each name."""
    plain, *others = (case if isinstance(case, tuple) else (case,) for case in (first, *rest))
    return [pytest.param(*plain), *(pytest.param(*case, marks=pytest.mark.long) for case in others)]
