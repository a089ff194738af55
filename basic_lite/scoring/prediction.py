"""An answered question with its score, as files of predictions have it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Attributes:
        number: 1-based position of its record in the data.
        images: names of the pictures that were shown, as the record has them.
        reference: the answer it is compared with; empty where the record has none.
        correct: whether the score is at least one half; None where there is no reference.
        cut: the answer was cut off at the most tokens it might have.
        trained_on: whether the run was trained on one of its pictures; None: that can't be told.
        score: by the metric, from 0 to 1; None where there is no reference.
        other_picture, no_picture: the answers to the same question with another picture, and without one; None: it
            wasn't asked so. Their scores are ``score_other_picture`` and ``score_no_picture``.
        references: all answers that count, where there are several.
        groups: rows of the table that it counts in, besides that of its type.
        circle: of a multiple choice that is asked in several orders of its options: what they have in common.
        image_digests: of each of ``images`` what stands for its file's bytes (``picture_digest``, in hexadecimal
            digits); empty: that isn't known of one of them.
    """

    number: int
    id: str
    question_type: str
    images: list[str]
    question: str
    reference: str
    prediction: str
    correct: bool | None
    cut: bool = False
    trained_on: bool | None = None
    score: float | None = None
    other_picture: str | None = None
    no_picture: str | None = None
    score_other_picture: float | None = None
    score_no_picture: float | None = None
    references: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    circle: str = ""
    image_digests: list[str] = field(default_factory=list)
