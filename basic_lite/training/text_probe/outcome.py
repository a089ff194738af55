"""What the text probe found, in numbers and in words. No torch is needed here."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from basic_lite.intervals import difference, ratio_interval
from basic_lite.resampling import Interval

# The key of its line in a run's log.
KEY = "text_probe"
TEXTS, QUESTIONS = "texts", "questions"


@dataclass(frozen=True)
class Change:
    """One measure without the LoRA and with it.

    Attributes:
        n: texts, or questions.
        before: without the LoRA: bits per byte, or the share that is right.
        after: with it.
        difference: after − before, with its 95 % interval, drawn in pairs: a bootstrap over texts, ``difference`` over
            questions.
    """

    n: int
    before: float
    after: float
    difference: Interval

    @property
    def direction(self) -> int:
        """1: it rose beyond doubt; −1: it fell; 0: it can't be told, or nothing changed."""
        return {"holds": 1, "fails": -1}.get(self.difference.verdict(self.n), 0)


@dataclass(frozen=True)
class Kind:
    """A kind of texts or questions, too few for an interval."""

    of: str  # TEXTS or QUESTIONS
    name: str
    n: int
    before: float
    after: float


@dataclass(frozen=True)
class Outcome:
    """What the probe found.

    Attributes:
        bits: of the texts, in bits per byte; less is better.
        right: the share of questions whose right continuation is the likeliest; more is better.
        left_out: texts and questions that the LLM's tokenizer can't write.
    """

    bits: Change
    right: Change
    kinds: list[Kind]
    left_out: int

    @property
    def verdict(self) -> str:
        """What became of the LLM's own ability, in a word or two."""
        better = {-self.bits.direction, self.right.direction} - {0}
        if not better:
            same = not any((*self.bits.difference, self.right.difference.value))
            return "did not change at all" if same else "shows no clear change"
        return "changed" if len(better) == 2 else "rose" if better == {1} else "fell"

    @property
    def questions_text(self) -> str:
        """The questions in words."""
        one, points = self.right, [100 * value for value in self.right.difference]
        return (
            f"{one.after:.1%} of {one.n} questions right, {one.before:.1%} without the LoRA "
            f"({_moved(one, 'rose by', 'fell by')} {_spread(points, one.direction, 1)} points)"
        )

    @property
    def texts_text(self) -> str:
        """The texts in words."""
        one = self.bits
        share = f", {abs(one.difference.value) / one.before:.1%}" if one.direction else ""
        return (
            f"{one.after:.3f} bits a byte of {one.n} texts, {one.before:.3f} without it "
            f"({_moved(one, 'worse by', 'better by')} {_spread(one.difference, one.direction, 3)}{share})"
        )

    @property
    def text(self) -> str:
        """All in a line."""
        few = f"; {self.left_out} that its tokenizer can't write were left out" if self.left_out else ""
        return f"the LLM's own ability with text {self.verdict}: {self.questions_text}; {self.texts_text}{few}"

    def to_dict(self) -> dict[str, Any]:
        """For the log."""
        return asdict(self)


@dataclass(frozen=True)
class NoOutcome:
    """Why there is nothing to measure, as a sentence."""

    why: str

    @property
    def text(self) -> str:
        """In a line."""
        return self.why

    def to_dict(self) -> dict[str, Any]:
        """For the log."""
        return {"why": self.why}


_READER = TypeAdapter(Outcome)


def outcome_from(values: Any) -> Outcome | NoOutcome:
    """What either ``to_dict`` wrote.

    Raises:
        TypeError, ValueError: somebody changed it.
    """
    if "why" in values:
        return NoOutcome(str(values["why"]))
    found = _READER.validate_python(values)
    numbers = [number for one in (found.bits, found.right) for number in (one.before, one.after, *one.difference)]
    if not all(map(math.isfinite, numbers)) or found.bits.before <= 0:  # no text has no bits
        raise ValueError("no numbers of a probe")
    return found


@dataclass(frozen=True)
class Scores:
    """What an LLM makes of the probe.

    Attributes:
        bits: [texts], of each text.
        right: [questions], 1 where the right continuation is likelier than each other one, else 0.
    """

    bits: NDArray[np.float64]
    right: NDArray[np.float64]


def scores_of(text_nats: Sequence[float], question_nats: Sequence[Sequence[float]]) -> Scores:
    """Scores from −log p.

    A question is right if the sum over the right continuation's tokens is the smallest. The sum is the probability of
    the text itself, so it means the same for every tokenizer; dividing by bytes would correct for lengths, and here
    the right one is as often the longest as chance has it (a test holds that).

    Args:
        question_nats: of each question, of its continuations, the right one first.
    """
    right = [float(all(nats[0] < other for other in nats[1:])) for nats in question_nats]
    return Scores(np.asarray(text_nats, dtype=np.float64) / math.log(2), np.asarray(right))


def compared(
    before: Scores,
    after: Scores,
    sizes: Sequence[int],
    text_kinds: Sequence[str],
    question_kinds: Sequence[str],
    left_out: int,
) -> Outcome:
    """Both measures without the LoRA and with it.

    Args:
        sizes: bytes of each text's scored part.
        text_kinds, question_kinds: of each text and each question.
    """
    bytes_of = np.asarray(sizes, dtype=np.float64)
    kinds = []
    for name in dict.fromkeys(text_kinds):
        at = np.asarray([kind == name for kind in text_kinds])
        ends = [float(one.bits[at].sum() / bytes_of[at].sum()) for one in (before, after)]
        kinds.append(Kind(TEXTS, name, int(at.sum()), *ends))
    for name in dict.fromkeys(question_kinds):
        at = np.asarray([kind == name for kind in question_kinds])
        kinds.append(Kind(QUESTIONS, name, int(at.sum()), *(float(one.right[at].mean()) for one in (before, after))))
    right = Change(
        len(before.right),
        float(before.right.mean()),
        float(after.right.mean()),
        difference(after.right[None], before.right[None]),
    )
    return Outcome(_bits_per_byte(before.bits, after.bits, bytes_of), right, kinds, left_out)


def _bits_per_byte(before: NDArray[np.float64], after: NDArray[np.float64], bytes_of: NDArray[np.float64]) -> Change:
    """All bits over all bytes, as lm-evaluation-harness has ``bits_per_byte``; a draw has its own bytes."""
    total = bytes_of.sum()
    ends = float(before.sum() / total), float(after.sum() / total)
    return Change(len(bytes_of), *ends, ratio_interval(after - before, bytes_of))


def _moved(change: Change, up: str, down: str) -> str:
    return {1: up, -1: down, 0: "no clear change:"}[change.direction]


def _spread(difference: Sequence[float], direction: int, digits: int) -> str:
    """A difference with its interval; without a sign where a word says the direction."""
    value, low, high = difference
    if direction < 0:
        value, low, high = -value, -high, -low
    sign = "" if direction else "+"
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
