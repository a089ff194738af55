"""A few answers on held-out pictures at each evaluation, so that people see what the model has learnt."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

from basic_lite.console import Say
from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.check import DataReport
from basic_lite.data.images import small_copy
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.questions import question_of
from basic_lite.training.answer import answer
from basic_lite.training.files import saving, write_json
from basic_lite.training.log import FIX, RunLog
from basic_lite.training.places import SAMPLES
from basic_lite.training.refinement_log import if_memory_allows
from basic_lite.training.step import Autocast

# Tokens of an answer at most, so that no model writes for minutes.
_ANSWER_TOKENS = 64
# So many questions are asked before the first step and after the last, for the report.
REPORTED = 12
# Pixels of the longer side of the report's pictures.
_THUMBNAIL = 192


@dataclass(frozen=True)
class Answered:
    """A held-out question with the model's answer and the data's."""

    picture: str
    question: str  # empty where captions are learnt, without questions
    answer: str
    reference: str
    number: int  # of those that are asked in this run, from 1

    def lines(self) -> list[str]:
        """For the terminal."""
        head = f"  {self.picture}: {self.question}" if self.question else f"  {self.picture}"
        return [head, f"    answer: {self.answer or '(nothing)'}", f"    reference: {self.reference}"]


class HeldOutAnswers:
    """Greedy answers to the first held-out questions that have a picture, asked as in training.

    ``training.eval_answers`` of them are asked at each evaluation and shown on the terminal, ``REPORTED`` at the run's
    start and end; none where that key is 0.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        data: SupervisedDataset | None,
        report: DataReport | None,
        say: Say,
        autocast: Autocast,
    ) -> None:
        """
        Args:
            data: held-out data; None: nothing is asked.
            report: on it.
            autocast: the context that training's forwards run in.
        """
        self.loaded, self.say, self.autocast = loaded, say, autocast
        self.image_fit, self.shown = recipe.data.image_fit, recipe.training.eval_answers
        self.chat = data.chat if data is not None else None
        self.records: list[Record] = []
        if data is not None and report is not None:
            chosen = report.has_image.nonzero()[0][: max(self.shown, REPORTED) if self.shown else 0]
            self.records = [data.record(int(i)) for i in chosen]

    def ask(self, step: int, log: RunLog, *, every: bool) -> None:
        """Ask, print, and log the answers. What can't be asked is warned of and left out.

        Args:
            step: steps that are done.
            every: also those that only the report shows. Small copies of the pictures are then written beside the log.

        Raises:
            UserError: a file can't be written.
        """
        records = self.records if every else self.records[: self.shown]
        if answers := self._answers(records, said=self.shown if step else 0):
            log.write(step, {"answers": answers})
            if every:
                path = log.path.with_name(SAMPLES)
                with saving(path, FIX):
                    write_json(path, self._thumbnails())

    def _answers(self, records: Sequence[Record], said: int) -> list[dict[str, str]]:
        """The answers in the form for the log; the first ``said`` of them are printed.

        It leaves the model in eval mode; each step sets its own. Nothing is drawn from any generator.
        """
        self.loaded.model.eval()
        found = []
        for number, record in enumerate(records):
            try:
                one = if_memory_allows(partial(self._ask, record, number + 1), self.autocast, self._say_short)
            except RecordProblem as problem:
                self.say(f"warning: no held-out answer: {problem}")
                continue
            if one is None:
                break
            for line in one.lines() if number < said else ():
                self.say(line)
            found.append(asdict(one))
        return found

    def _say_short(self) -> None:
        self.say("warning: not enough memory for held-out answers; training.eval_answers=0 leaves them out")

    def _thumbnails(self) -> dict[str, str]:
        """A small copy of each question's first picture as a data URI, by its number; none of what can't be read."""
        found = {}
        for number, record in enumerate(self.records, start=1):
            with suppress(RecordProblem):
                found[str(number)] = small_copy(record.images[0], _THUMBNAIL, 80)
        return found

    def _ask(self, record: Record, number: int) -> Answered:
        assert self.chat is not None
        (text,) = answer(
            self.loaded, self.chat, [record], image_fit=self.image_fit, batch_size=1, max_new_tokens=_ANSWER_TOKENS
        )
        # The `plain` template leaves the question out.
        question = "" if self.chat.template == "plain" else question_of(record)
        asked = " ".join(question.replace(IMAGE_PLACEHOLDER, "").split())
        names = ", ".join(image.name for image in record.images)
        reference = " ".join(self.chat.reference(record).split())
        return Answered(names, asked, " ".join(text.split()), reference, number)
