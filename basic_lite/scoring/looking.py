"""Does the model look at the picture? The scores of the same questions with another picture, and without any."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from basic_lite.intervals import difference
from basic_lite.resampling import LEAST_SAMPLES, Interval
from basic_lite.scoring.metrics.estimate import Estimate, estimate_json, estimate_of, estimated, percent
from basic_lite.scoring.prediction import Prediction

# Draws the questions that are asked again, and which other picture each is shown with.
SEED = 0


@dataclass(frozen=True)
class Controls:
    """Scores of the questions that were asked again, each over those that have it.

    Attributes:
        asked: how many they are.
        of: how many questions have a score in all.
        other_gain, none_gain: own picture minus other picture, and minus none, question by question.
    """

    asked: int
    of: int
    own: Estimate
    other: Estimate | None
    none: Estimate | None
    other_gain: Interval | None
    none_gain: Interval | None

    def lines(self) -> Iterator[str]:
        """The scores in a line, and what follows from them in plain words."""
        parts = [percent(self.own)]
        parts += [f"{percent(self.other)} with another picture"] if self.other else []
        parts += [f"{percent(self.none)} without one"] if self.none else []
        sample = f" ({self.asked:,} of the {self.of:,} questions, drawn with seed {SEED})"
        yield f"with its own picture {'; '.join(parts)}" + (sample if self.asked < self.of else "")
        yield self.verdict()
        if self.asked < LEAST_SAMPLES or _none_right(self.own, self.none):
            return
        if self.none_gain and self.none_gain.high < 0:
            yield f"the questions alone do better ({points(self.none_gain)}): pictures lead it away from the answers"
        elif self.none_gain and self.none_gain.low <= 0:
            yield f"the questions alone may do as well ({points(self.none_gain)}): many may need no picture"

    def verdict(self) -> str:
        """Whether it looks at the picture, in a sentence."""
        gain = self.other_gain
        if gain is None:
            return "there is no other picture to ask with: all questions have the same, or each another number of them"
        if self.asked < LEAST_SAMPLES:
            return f"{self.asked} questions are too few to say whether it looks at the picture"
        if _none_right(self.own, self.other):
            return "no answer is right, so it can't be told whether it looks at the picture"
        if gain.low > 0:
            return f"it looks at the picture: its own one is worth {points(gain)} more than another"
        if gain.high < 0:
            return (
                f"another picture does better than its own ({points(gain)}): the pictures may not belong to their "
                "questions"
            )
        return f"it may not look at the picture: its own one instead of another changes the score by {points(gain)}"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Controls":
        """What ``to_json`` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        own, other, none = (estimate_of(value.get(name)) for name in ("own_picture", "other_picture", "no_picture"))
        if own is None:
            raise ValueError("no score with the own picture")
        gains = (value.get(f"gain_over_{name}") for name in ("other_picture", "no_picture"))
        over_other, over_none = (
            None if one is None else Interval(*(float(one[key]) for key in Interval._fields)) for one in gains
        )
        return cls(int(value["questions"]), int(value["of"]), own, other, none, over_other, over_none)

    def to_json(self) -> dict[str, Any]:
        """As summaries have it."""
        shares = {"own_picture": self.own, "other_picture": self.other, "no_picture": self.none}
        gains = {"gain_over_other_picture": self.other_gain, "gain_over_no_picture": self.none_gain}
        return {
            "questions": self.asked,
            "of": self.of,
            "seed": SEED,
            **{name: estimate_json(one) for name, one in shares.items() if one is not None},
            **{name: one._asdict() for name, one in gains.items() if one is not None},
        }


def _none_right(*shares: Estimate | None) -> bool:
    return not any(one.share for one in shares if one is not None)


def points(gain: Interval) -> str:
    """A difference in words: ``+4 points [-3, 11]``."""
    return f"{100 * gain.value:+.0f} points [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"


def controls_of(predictions: Sequence[Prediction]) -> Controls | None:
    """The controls of some answers, rotations merged; None: none has a score with another picture or without one."""
    scored = [one for one in predictions if one.score is not None]
    again = [one for one in scored if one.score_other_picture is not None or one.score_no_picture is not None]
    if not again:
        return None
    other, other_gain = _compared([(one.score, one.score_other_picture) for one in again])
    none, none_gain = _compared([(one.score, one.score_no_picture) for one in again])
    own = estimated([one.score for one in again if one.score is not None])
    return Controls(len(again), len(scored), own, other, none, other_gain, none_gain)


def _compared(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[Estimate | None, Interval | None]:
    """The score of the second of each pair, and how much higher the first is."""
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not known:
        return None, None
    own, others = np.array(known, dtype=np.float64).T
    return estimated(others.tolist()), difference(own[None], others[None])
