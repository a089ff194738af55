"""The class that lmms-eval asks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string

from basic_lite.console import note
from basic_lite.data.problems import BadImage, shorten
from basic_lite.errors import UserError
from basic_lite.tools.lmms_eval.arguments import Generation, Opening, generation, opening
from basic_lite.tools.lmms_eval.asker import Asked, Asker

# Questions whose pictures are kept: the options of one are asked one after the other.
_KEPT = 32


class BasicLite(lmms):
    """A run of basic-lite: its projector, its LoRA on the 4-bit base, its template and its way to fit a picture.

    lmms-eval itself catches each error, prints its traceback and leaves with status 0. So where lmms-eval has made the
    model from its command line, an error that the user can mend ends the program: one sentence, status 2.
    """

    is_simple = True

    def __init__(self, run: str | os.PathLike[str], device: str = "auto", batch_size: int = 16) -> None:
        """
        Args:
            run: a run folder, or a bundle inside one.
            device: auto, cpu or cuda.
            batch_size: questions answered at once.

        Raises:
            UserError: there is no usable run, or the device isn't there.
        """
        super().__init__()
        self._asker: Asker | None = Asker(Opening(os.fspath(run), device, batch_size))
        self._ends = False
        self._visuals = lru_cache(_KEPT)(self._shown)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> BasicLite:
        """What lmms-eval calls with `--model_args` and its own options.

        Raises:
            SystemExit: what they name can't be opened; why is said.
        """
        with _one_sentence(ends=True):
            found = opening(_parsed(arg_string), additional_config or {})
            model = cls(found.run, found.device, found.batch_size)
        model._ends = True
        return model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._opened.device

    @property
    def chat_template(self) -> NoReturn:
        """What lmms-eval asks for with `--apply_chat_template`.

        Raises:
            UserError: always; under lmms-eval's own command it is said, and ``SystemExit`` ends the program.
        """
        with _one_sentence(self._ends):
            raise UserError("--apply_chat_template: a run is always asked in its own template; leave it out")

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The likeliest answer to each question.

        Raises:
            UserError: a question can't be asked as its task wants.
        """
        with _one_sentence(self._ends):
            read: dict[str, Generation] = {}
            asked, wanted = [], []
            for request in requests:
                text, given, visuals, doc_id, task, split = request.args
                asked.append(self._asked(text, visuals, doc_id, task, split))
                if (key := f"{task} {given!r}") not in read:
                    read[key] = generation(given, f"task {task}")
                wanted.append(read[key])
            return self._opened.answers(asked, wanted)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """How likely each option is, as (−log p of the whole answer, whether it is the model's own answer).

        It is a loss, as lmms-eval's own models give it, for its `multiple_choice` takes the smallest: `acc` goes by the
        sum over the answer's tokens, `acc_norm` by that sum a character. Wrapped, because what lmms-eval 0.7 gets bare
        it turns into text, and then can't read.

        Raises:
            UserError: an option can't be weighed.
        """
        with _one_sentence(self._ends):
            asked, options = [], []
            for request in requests:
                if len(request.args) != 6:
                    raise UserError(
                        f"task {request.task_name} has the metric acc_mutual_info, which takes the worst option, since "
                        "lmms-eval's models give losses; choose acc or acc_norm in a copy of the task"
                    )
                text, option, visuals, doc_id, task, split = request.args
                if callable(option):
                    option = option(self.task_dict[task][split][doc_id])
                asked.append(self._asked(text, visuals, doc_id, task, split))
                options.append(str(option))
            found = self._opened.likelihoods(asked, options)
        return [GenerationResult((one.loss, one.likeliest)) for one in found]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused: each question of a run is asked alone.

        Raises:
            UserError: always.
        """
        self._refuse(requests, "asks in several rounds, and a run is asked each question alone")

    def generate_visual_cot(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused: a run draws no pictures.

        Raises:
            UserError: always.
        """
        self._refuse(requests, "wants pictures drawn, and a run answers in words")

    def clean(self) -> None:
        """Give the model's memory back, which a judge on the same card may need."""
        self._asker = None
        self._visuals.cache_clear()
        super().clean()

    @property
    def _opened(self) -> Asker:
        if self._asker is None:
            raise UserError("this model has given its memory back after its evaluation; make a new one")
        return self._asker

    def _refuse(self, requests: Sequence[Instance], why: str) -> NoReturn:
        with _one_sentence(self._ends):
            raise UserError(f"task {requests[0].task_name} {why}; choose another task")

    def _asked(self, text: object, visuals: Any, doc_id: Any, task: str, split: str) -> Asked:
        place = f"task {task}, question {doc_id}"
        if not isinstance(text, str):
            raise UserError(f"{place} is {shorten(text)}, and a question is a text; correct doc_to_text of the task")
        return Asked(place, text, lambda: self._visuals(visuals, task, split, doc_id))

    def _shown(self, visuals: Any, task: str, split: str, doc_id: Any) -> object:
        if visuals is None:
            return None
        try:
            return visuals(self.task_dict[task][split][doc_id])
        except OSError as error:
            place = f"task {task}, question {doc_id}"
            raise BadImage(f"its picture can't be opened ({error})", "correct its path", place) from error


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        return dict(simple_parse_args_string(arguments))
    except ValueError:
        raise UserError(f"--model_args {shorten(arguments)}: give it as run=runs/NAME") from None


@contextmanager
def _one_sentence(ends: bool) -> Iterator[None]:
    """Say an error that the user can mend and leave, where ``ends``; else it goes on to the caller."""
    try:
        yield
    except UserError as error:
        if not ends:
            raise
        note(f"error: {error}")
        raise SystemExit(2) from None
