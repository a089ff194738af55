"""Relaxed accuracy (ChartQA): numbers may be 5 % off."""

from collections.abc import Sequence

_TOLERANCE = 0.05


def relaxed(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if a number is within 5 % of an answer, or a text is the answer, small and capital letters aside.

    Masry et al. (2022), arXiv 2203.10244, section 5.1; worked out as in `relaxed_correctness` of google-research's
    pix2struct (`metrics.py`), which evaluations of ChartQA use: "12%" is 0.12, so it isn't "12"; "5,000" is a text; an
    answer of 0 is compared as a text.
    """
    return float(any(_is_right(prediction.strip(), answer.strip()) for answer in answers))


def _is_right(prediction: str, answer: str) -> bool:
    said, wanted = _number(prediction), _number(answer)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= _TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
