"""Exact match: an answer is right if it is the record's own."""

from collections.abc import Sequence


def normalise(text: str) -> str:
    """What exact match compares: lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def exact(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if the answer is one of ``answers``, else 0.

    On GQA it is the benchmark's own measure: its `eval.py` compares texts, and LLaVA's `convert_gqa_for_eval.py` makes
    answers lower case, without a full stop at the end, before it.
    """
    return float(normalise(prediction) in map(normalise, answers))
