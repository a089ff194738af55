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
    """The fewest letters to put in, take out or change that make one text the other.

    A whole column of the table in one integer: Myers, "A fast bit-vector algorithm for approximate string matching
    based on dynamic programming", J. ACM 46 (1999), in Hyyrö's form for two whole texts (2003). A bit of ``up`` or
    ``down`` says that a cell is one more, or one less, than the cell above it.
    """
    if not one:
        return len(other)
    letters: dict[str, int] = {}
    for place, letter in enumerate(one):
        letters[letter] = letters.get(letter, 0) | 1 << place
    every, last, distance = (1 << len(one)) - 1, 1 << len(one) - 1, len(one)
    up, down = every, 0
    for letter in other:
        same = letters.get(letter, 0)
        level = (((same & up) + up) ^ up) | same
        right, left = down | ~(level | up), level & up  # one more, or one less, than the cell before it
        distance += bool(right & last) - bool(left & last)
        right, left, same = right << 1 | 1, left << 1, same | down
        up, down = (left | ~(same | right)) & every, right & same & every
    return distance
