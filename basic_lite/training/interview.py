"""A model is asked the questions of an evaluation: with their own picture, with another one, without any."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record
from basic_lite.data.turns import clean
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.controls import Again
from basic_lite.scoring.metrics.named import RIGHT, Metric
from basic_lite.scoring.prediction import Prediction
from basic_lite.scoring.questions import Question, question_of, without_picture
from basic_lite.training.answer import answer
from basic_lite.training.answer_file import NONE, OTHER, OWN, Answers, Shown

# Pictures of a question, by its place.
Pictures = Callable[[int], tuple[ImageRef, ...]]
# What is shown, places of the questions, and by its place a question's record and its pictures.
Way = tuple[Shown, Iterable[int], Callable[[int], Record], Pictures]


def ways(asked: Sequence[Record], pictures: Pictures, again: Again | None) -> Iterator[Way]:
    """Every question, then some of them again with another picture and without one.

    Args:
        asked: the questions' records, as they are asked.
        pictures: those that are shown with a question.
    """
    yield OWN, range(len(asked)), asked.__getitem__, pictures
    if again is not None:
        yield OTHER, again.others, asked.__getitem__, again.others.__getitem__
        yield NONE, again.alone, lambda at: without_picture(asked[at]), lambda at: ()


@dataclass(frozen=True)
class Interview:
    """A model that is asked; what it has answered already isn't asked again.

    Attributes:
        most: tokens of an answer, at most.
        kept: the answers.
        progress: called with the number of answers that are there.
    """

    loaded: Loaded
    recipe: Recipe
    chat: ChatFormat
    batch_size: int
    most: int
    kept: Answers
    progress: Callable[[int], None]

    def ask(self, shown: Shown, places: Iterable[int], record: Callable[[int], Record], pictures: Pictures) -> None:
        """Ask the questions of some places in one of the ways."""
        wanted = list(places)
        left = [at for at in wanted if (shown, at) not in self.kept.found]
        if len(left) < len(wanted):
            self.progress(len(wanted) - len(left))
        answer(
            self.loaded,
            self.chat,
            [record(at) for at in left],
            image_fit=self.recipe.data.image_fit,
            batch_size=self.batch_size,
            max_new_tokens=self.most,
            images=lambda index: pictures(left[index]),
            progress=self.progress,
            made=lambda index, text, cut: self.kept.keep(shown, left[index], text, cut),
        )

    def prediction(
        self, at: int, question: Question, record: Record, pictures: Sequence[ImageRef], metric: Metric
    ) -> Prediction:
        """What was answered to a question, scored.

        Args:
            record: the question's, as it was asked.
        """
        answers, asked = question.right_answers(self.chat), question_of(record)

        def scored(text: str | None) -> float | None:
            return metric.score(text, answers, asked) if answers and text is not None else None

        (own, cut), other, none = self.kept.found[OWN, at], self.kept.text(OTHER, at), self.kept.text(NONE, at)
        score = scored(own)
        return Prediction(
            number=record.number,
            id=record.id,
            question_type=record.question_type or "",
            images=[clean(image.name) for image in pictures],
            question=asked,
            reference=answers[0] if answers else "",
            prediction=own,
            correct=None if score is None else score >= RIGHT,
            cut=cut,
            score=score,
            other_picture=other,
            no_picture=none,
            score_other_picture=scored(other),
            score_no_picture=scored(none),
            references=list(answers) if len(answers) > 1 else [],
            groups=list(question.groups),
            circle=question.circle,
        )
