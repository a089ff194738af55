"""Circular evaluation (MMBench): a question that is asked in several orders of its options counts once, as its worst.

CircularEval of Liu et al. (2023), arXiv 2307.06281: it is right only if it is right in every order.
"""

from collections.abc import Sequence


def as_one(circles: Sequence[str]) -> list[list[int]]:
    """Places of answers that count as one: those of the same circle, and each that is in none alone.

    Args:
        circles: of each answer, what its question's orders have in common; empty: it is asked once.
    """
    groups: dict[str, list[int]] = {}
    for at, circle in enumerate(circles):
        groups.setdefault(circle or f"{at} alone", []).append(at)
    return list(groups.values())


def worst(scores: Sequence[float | None]) -> float | None:
    """The score of answers that count as one; None where one of them has none."""
    known = [score for score in scores if score is not None]
    return min(known) if len(known) == len(scores) else None
