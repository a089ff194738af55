"""ANLS (DocVQA): how like an answer is to the nearest right one, letter by letter."""

from collections.abc import Sequence

_THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 − normalised Levenshtein distance to the nearest answer; 0 where that is below one half.

    Biten et al. (2019), arXiv 1905.13648, equation 1, with τ = 0.5. The paper gives 0 at a distance of exactly one
    half; the Robust Reading Competition's script, which DocVQA's results are from, gives .5 there, and so do we. As in
    the script, letters are compared in lower case with single spaces, and the length is that of the texts as they are,
    in capitals (where "ß" has two).
    """
    best = max(1 - _distance(prediction, answer) for answer in answers)
    return best if best >= _THRESHOLD else 0.0


def _distance(one: str, other: str) -> float:
    length = max(len(one.upper()), len(other.upper()))
    return levenshtein(_plain(one), _plain(other)) / length if length else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(one: str, other: str) -> int:
    """The fewest letters to put in, take out or change that make one text the other."""
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, letter_of_other in enumerate(other, 1):
            changed = above[column - 1] + (letter != letter_of_other)
            line.append(min(changed, above[column] + 1, line[-1] + 1))
        above = line
    return above[-1]
