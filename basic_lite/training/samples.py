"""A few answers on held-out pictures at each evaluation, so that people see what the model has learnt."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from accelerate.utils.memory import clear_device_cache

from basic_lite.console import Say
from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.check import DataReport
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record
from basic_lite.errors import is_out_of_memory
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.training.answer import answer

# Seconds at most, whatever the model writes.
_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Answered:
    """A held-out question with the model's answer and the data's."""

    picture: str
    question: str  # empty where captions are learnt, without questions
    answer: str
    reference: str

    def lines(self) -> list[str]:
        """For the terminal."""
        head = f"  {self.picture}: {self.question}" if self.question else f"  {self.picture}"
        return [head, f"    answer: {self.answer or '(nothing)'}", f"    reference: {self.reference}"]


class HeldOutAnswers:
    """Greedy answers to the first held-out questions that have a picture, asked as in training."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        data: SupervisedDataset | None,
        report: DataReport | None,
        say: Say,
        autocast: Callable[[], AbstractContextManager[Any]] | None,
    ) -> None:
        """
        Args:
            data: held-out data; None: nothing is asked.
            report: on it.
            autocast: the context that training's forwards run in.
        """
        self.loaded, self.say, self.autocast = loaded, say, autocast
        self.image_fit = recipe.data.image_fit
        self.chat = data.chat if data is not None else None
        self.records: list[Record] = []
        if data is not None and report is not None:
            chosen = report.has_image.nonzero()[0][: recipe.training.eval_answers]
            self.records = [data.record(int(i)) for i in chosen]

    def ask(self) -> list[dict[str, str]]:
        """Ask, print, and give the answers in the form for the log. What can't be asked is warned of and left out.

        It leaves the model in eval mode; each step sets its own. Nothing is drawn from any generator.
        """
        self.loaded.model.eval()
        found = []
        for record in self.records:
            try:
                one = self._ask(record)
            except RecordProblem as problem:
                self.say(f"warning: no held-out answer: {problem}")
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                one = None
            if one is None:  # the exception is gone, and with it the frames that hold the attempt's tensors
                clear_device_cache(garbage_collection=True)
                self.say("warning: not enough memory for held-out answers; training.eval_answers=0 leaves them out")
                break
            for line in one.lines():
                self.say(line)
            found.append(asdict(one))
        return found

    def _ask(self, record: Record) -> Answered:
        assert self.chat is not None
        with self.autocast() if self.autocast is not None else nullcontext():
            (text,) = answer(
                self.loaded, self.chat, [record], image_fit=self.image_fit, batch_size=1, max_new_tokens=_ANSWER_TOKENS
            )
        question = next((turn.text for turn in reversed(record.turns) if turn.role == "human"), "")
        # The `plain` template leaves the question out.
        asked = "" if self.chat.template == "plain" else " ".join(question.replace(IMAGE_PLACEHOLDER, "").split())
        names = ", ".join(image.name for image in record.images)
        return Answered(names, asked, " ".join(text.split()), " ".join(self.chat.reference(record).split()))
