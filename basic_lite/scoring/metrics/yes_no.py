"""Yes or no (POPE): accuracy, and how much a model that always says yes gains by it."""

import re
from collections.abc import Sequence

from basic_lite.intervals import f1_interval
from basic_lite.scoring.metrics.estimate import Estimate, Mean, Share

_NO = {"No", "no", "not"}


def says_yes(text: str) -> bool:
    """What an answer says, by POPE's `evaluate.py`: no if its first sentence has "No", "no" or "not", else yes."""
    return not _NO & set(text.partition(".")[0].replace(",", "").split(" "))


def yes_no(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if the answer says what is right, else 0. Whatever doesn't say no counts as yes, as in POPE."""
    return float(says_yes(prediction) == _is_yes(answers[0]))


def yes_no_unread(answer: str, question: str) -> str:
    """Why a right answer can't be read; empty: it can."""
    return "says neither yes nor no" if _is_yes(answer) is None else ""


def _is_yes(right: str) -> bool | None:
    """What a right answer says, in small or capital letters; None: neither yes nor no."""
    words = set(re.findall(r"\w+", right.partition(".")[0].lower()))
    return False if words & {"no", "not"} else True if "yes" in words else None


def figures(pairs: Sequence[tuple[str, str]]) -> dict[str, Estimate]:
    """Precision, recall, F1 of "yes", and its share among the answers; what has no answers is left out.

    Li et al. (2023), arXiv 2305.10355, section 5.1.

    Args:
        pairs: of each question the answer and what is right.
    """
    said = [(says_yes(answer), _is_yes(right)) for answer, right in pairs]
    hits, false, missed = (said.count(pair) for pair in ((True, True), (True, False), (False, True)))
    counted = {
        "precision": (hits, hits + false),
        "recall": (hits, hits + missed),
        "yes ratio": (hits + false, len(said)),
    }
    found: dict[str, Estimate] = {name: Share(*pair) for name, pair in counted.items() if pair[1]}
    wrong = false + missed
    if hits + wrong:
        found["F1"] = Mean(2 * hits / (2 * hits + wrong), len(said), f1_interval(hits, wrong))
    return found
