"""``training.eval_generate``: at each evaluation a fixed sample of held-out questions is answered and scored.

They are asked as ``basic-lite eval`` asks: greedily, in its template, with its image fit and its ends of an answer;
with their own picture, with another one, and without any.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accelerate.utils.memory import clear_device_cache

from basic_lite.console import Say
from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import DataReport
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record
from basic_lite.errors import is_out_of_memory
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.controls import asked_again
from basic_lite.scoring.looking import SEED, Controls, controls_of
from basic_lite.scoring.metrics.estimate import Estimate, estimate_json, estimated, percent
from basic_lite.scoring.metrics.named import METRICS, Metric
from basic_lite.scoring.prediction import Prediction
from basic_lite.scoring.questions import Question, ready_to_ask
from basic_lite.training.answer import AT_ONCE, answer_length, asked_otherwise, chat_format
from basic_lite.training.answer_file import Answers
from basic_lite.training.best_text import GENERATED, NO_SCORE, OTHER_SCORE, SCORE
from basic_lite.training.interview import Interview, ways
from basic_lite.training.processes import Processes
from basic_lite.training.step import Autocast


@dataclass(frozen=True)
class Scored:
    """The answers of one evaluation, in the order of the sample."""

    metric: Metric
    predictions: Sequence[Prediction]

    @property
    def scores(self) -> list[float]:
        """Of each question with its own picture."""
        return [one.score for one in self.predictions if one.score is not None]

    @cached_property
    def estimate(self) -> Estimate:
        """Their mean."""
        return estimated(self.scores)

    @cached_property
    def controls(self) -> Controls | None:
        """The scores with another picture and without one; None where no question has a picture."""
        return controls_of(self.predictions)

    def text(self) -> str:
        """For the terminal."""
        parts = [f"{self.metric.title} {percent(self.estimate)} of {len(self.predictions)}"]
        if self.controls is not None:
            parts += [f"{percent(one)} {how}" for one, how in self._ways(self.controls) if one is not None]
        return "; ".join(parts)

    @staticmethod
    def _ways(controls: Controls) -> Iterable[tuple[Estimate | None, str]]:
        return (controls.other, "with another picture"), (controls.none, "without one")

    def record(self) -> dict[str, Any]:
        """For the log: the scores, which trackers take too, and what they are made of."""
        controls = self.controls
        shares = {SCORE: self.estimate}
        shares |= {OTHER_SCORE: controls.other} if controls is not None and controls.other is not None else {}
        shares |= {NO_SCORE: controls.none} if controls is not None and controls.none is not None else {}
        made_of: dict[str, Any] = {"metric": self.metric.name, "score": estimate_json(self.estimate)}
        made_of |= {"controls": controls.to_json()} if controls is not None else {}
        made_of |= {"cut": sum(one.cut for one in self.predictions), "scores": self.scores}
        return {name: one.share for name, one in shares.items()} | {GENERATED: made_of}


@dataclass(frozen=True)
class Sample:
    """What is asked at each evaluation. No weights are needed to know it, so bad questions show before they load.

    Attributes:
        asked: the questions' records as the model is asked them.
    """

    chat: ChatFormat
    metric: Metric
    questions: list[Question]
    asked: Sequence[Record]

    @classmethod
    def of(cls, recipe: Recipe, frontend: Frontend, data: SupervisedDataset, report: DataReport) -> "Sample":
        """Draw the sample from held-out data, and look at it.

        Args:
            report: on the data.

        Raises:
            BadRecord: a question can't be asked, or its answer can't be read by the metric.
        """
        chat, metric = chat_format(recipe, frontend), METRICS[recipe.training.eval_metric]
        questions = sample_of(data, report, recipe.training.eval_generate)
        asked = ready_to_ask(
            questions,
            recipe.data,
            frontend,
            chat,
            metric,
            no_question="write one, or set training.eval_generate=0",
            key="training.eval_metric",
        )
        return cls(chat, metric, questions, asked)


class HeldOutScore:
    """Asks the sample at each evaluation. Every process answers its share, and all of them get all answers.

    The batches don't depend on the number of processes. Nothing is drawn from any global generator.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        data: SupervisedDataset,
        report: DataReport,
        processes: Processes,
        say: Say,
        autocast: Autocast,
        *,
        longest: int,
    ) -> None:
        """
        Args:
            data: held-out data.
            report: on it.
            autocast: the context that training's forwards run in.
            longest: tokens of the longest sample that is trained on.

        Raises:
            BadRecord: see ``Sample.of``.
        """
        self.recipe, self.loaded, self.processes, self.say = recipe, loaded, processes, say
        sample = Sample.of(recipe, loaded.frontend, data, report)
        self.chat, self.metric = sample.chat, sample.metric
        self.questions, self.asked = sample.questions, sample.asked
        self.again = asked_again(self.questions, len(self.questions), self.chat)
        self.most = answer_length(self.chat, self.asked)
        self.lowered: int | None = None  # questions at once, since memory ran out
        self._autocast, self._longest = autocast, longest

    def outlook(self) -> list[str]:
        """What to say before the first step."""
        count = len(self.questions)
        if not count:
            return ["note: training.eval_generate: no held-out record has an answer, so none is asked"]
        again = " each also with another picture and without one," if self.again.answers else ""
        what = (
            f"each evaluation asks {count:,} held-out questions,{again} and scores the answers by {self.metric.title}"
        )
        return [text for text in (what, asked_otherwise(self.recipe, self.chat)) if text]

    @property
    def tokens(self) -> tuple[int, int]:
        """Of all that is asked at one evaluation: tokens of the questions, and about as many of the answers."""
        asked = sum(len(self.chat.prompt(record(at))) for _, places, record, _ in self._ways() for at in places)
        new = [len(self.chat.tokenizer(self.chat.reference(one))["input_ids"]) for one in self.asked]
        return asked, round(sum(new) / max(len(new), 1) * (len(self.asked) + self.again.answers))

    def at_once(self, micro_batch: int) -> int:
        """How many questions are answered at once.

        Together they have no more tokens than the micro-batch of the longest samples. A token that is generated from
        keeps a key and a value of each layer; one that is trained on keeps at least its layer's input, and beside it
        what one layer's backward needs.
        """
        longest = max((len(self.chat.prompt(one)) for one in self.asked), default=1) + self.most
        return min(self.lowered or AT_ONCE, max(1, micro_batch * self._longest // longest))

    def ask(self, step: int, micro_batch: int) -> Scored | None:
        """Ask the sample. It leaves the model in eval mode; each step sets its own.

        Args:
            step: for messages.
            micro_batch: samples that training has in memory at once.

        Returns:
            The same in every process; None where not all could be asked, which is said.
        """
        if not self.questions:
            return None
        kept = Answers()
        why = self._answer(kept, step, self.at_once(micro_batch))
        every = self.processes.gather((why, self.lowered, kept.found))
        self.lowered = min((lowered for _, lowered, _ in every if lowered is not None), default=None)
        if reasons := [reason for reason, _, _ in every if reason]:
            self.say(f"warning: step {step}: no score of held-out questions: {reasons[0]}")
            return None
        kept.found = {place: answer for _, _, found in every for place, answer in found.items()}
        interview = self._interview(kept, 1)
        return Scored(
            self.metric,
            [
                interview.prediction(at, question, self.asked[at], self.asked[at].images, self.metric)
                for at, question in enumerate(self.questions)
            ],
        )

    def _interview(self, kept: Answers, size: int) -> Interview:
        return Interview(self.loaded, self.recipe, self.chat, size, self.most, kept, lambda done: None)

    def _ways(self) -> Any:
        return ways(self.asked, lambda at: self.asked[at].images, self.again)

    def _answer(self, kept: Answers, step: int, size: int) -> str | None:
        """Answer this process's share; why that can't be done, or None."""
        shares = [(way, list(self._share(way[1], way[2], size))) for way in self._ways()]
        self.loaded.model.eval()
        while True:
            try:
                with self._autocast():
                    for (shown, _, record, pictures), own in shares:
                        self._interview(kept, size).ask(shown, own, record, pictures)
                return None
            except RecordProblem as problem:
                return str(problem)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Here the exception is gone, and with it the frames that hold the batch's tensors.
            clear_device_cache(garbage_collection=True)
            if size == 1:
                return "not enough memory to answer a single one; training.eval_generate=0 leaves them out"
            self.say(f"out of memory in step {step}'s answers, {size} at once: it goes on with {size // 2}")
            size = self.lowered = size // 2

    def _share(self, places: Iterable[int], record: Callable[[int], Record], size: int) -> Iterable[int]:
        """The places of this process's batches, made as ``answer`` makes them of all."""
        order = sorted(places, key=lambda at: (len(self.chat.prompt(record(at))), at))
        for start in range(self.processes.index * size, len(order), self.processes.count * size):
            yield from order[start : start + size]


def sample_of(data: SupervisedDataset, report: DataReport, count: int) -> list[Question]:
    """A fixed sample of held-out questions with an answer, in the order of the data.

    Those with a picture alone, if there are any: without them nothing shows whether the model looks.
    """
    with_picture = report.has_image.nonzero()[0].tolist()
    places = with_picture or list(range(len(data)))
    random.Random(SEED).shuffle(places)
    found: dict[int, Question] = {}
    for place in places:
        if len(found) == count:
            break
        question = Question(data.record(place))
        if question.is_scored:
            found[place] = question
    return [found[place] for place in sorted(found)]
