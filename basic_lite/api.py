"""basic-lite from Python: train, open a model, ask it, evaluate it. ``basic_lite`` hands out these names."""

import errno
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from basic_lite.console import counting, note, quiet_libraries
from basic_lite.data.images import ImageRef
from basic_lite.data.memory import Picture, picture_of, records_of
from basic_lite.data.problems import shorten
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.data.turns import clean
from basic_lite.errors import Interrupted, UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import pick_device
from basic_lite.recipe.schema import Device, Recipe, SourceSection, Template
from basic_lite.run import RunResult
from basic_lite.run import train as train_recipe
from basic_lite.scoring.controls import MOST_ASKED_AGAIN
from basic_lite.scoring.metrics.named import MetricName
from basic_lite.scoring.questions import as_questions, check_pictures
from basic_lite.tools.asked import Asked, File, read_asked
from basic_lite.tools.chat.arguments import is_picture, picture, require_picture
from basic_lite.tools.chat.command import find_speaker
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS, Dialogue, Message
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.chat.speaker import Manner, Speaker, require_temperature
from basic_lite.tools.evaluate import make_ready
from basic_lite.tools.report.page import write_report
from basic_lite.tools.score import EvalResult
from basic_lite.training.answer import AT_ONCE, enough_for

Pictures = Picture | Sequence[Picture] | None
Rows = str | os.PathLike[str] | SourceSection | Iterable[Record | Mapping[str, Any] | SourceSection]


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    checkpoint: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run one stage, as ``basic-lite train`` does. A second run in the same program is as good as the first.

    Args:
        resume: continue the run in the recipe's folder.
        checkpoint: with ``resume``: the step of the checkpoint to start from; None: the newest.
        overwrite: replace the run in the recipe's folder. Not with ``resume``.
        console: where its lines go; None: to stderr.

    Raises:
        UserError: anything the user can fix.
        Interrupted: Ctrl-C, or a notebook's stop button, after a checkpoint was written.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"train takes a recipe, and this is {shorten(recipe)}; load_recipe reads one")
    try:
        return train_recipe(
            recipe, resume=resume, checkpoint=checkpoint, overwrite=overwrite, console=console, report=write_report
        )
    except (Interrupted, UserError, KeyboardInterrupt) as error:
        found: BaseException = error
    # A notebook keeps the last error, and it would keep the frames that hold the model.
    found.__cause__ = found.__context__ = None
    raise found.with_traceback(None)


def open_run(run: str | os.PathLike[str], device: Device = "auto") -> "TrainedModel":
    """Open the model of a run.

    Args:
        run: a run folder (its ``final`` bundle, else its newest checkpoint), or a bundle inside one.
        device: ``auto``: the GPU where there is one.

    Raises:
        UserError: there is no bundle, or it doesn't hold together.
    """
    _require_path(run, "open_run", "run folder, such as 'runs/NAME'")
    quiet_libraries()
    where = pick_device(device, "device")
    tell_device(where, device, note)
    return TrainedModel(RunSpeaker(Path(run).expanduser(), where), Path(run))


def open_model(name: str | os.PathLike[str], device: Device = "auto", dtype: str = "auto") -> "Model":
    """Open any model that ``basic-lite chat`` opens: a run, an exported folder, a llava-hf folder or hub name.

    Args:
        dtype: number type of a model that isn't a run: ``float32``, ``bfloat16``, ``float16``, or ``auto``.

    Raises:
        UserError: there is no such model, or it can't be read.
    """
    _require_path(name, "open_model", "model's name or folder")
    quiet_libraries()
    speaker = find_speaker(os.fspath(name), device, dtype)
    return TrainedModel(speaker, Path(name)) if isinstance(speaker, RunSpeaker) else Model(speaker)


def _require_path(value: object, function: str, wanted: str) -> None:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{function} takes a {wanted}, and this is {shorten(value)}; name one")
    try:
        os.lstat(value)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = shorten(value)
            raise UserError(f"{function}: {name}: the name is longer than file systems take; shorten it") from error
    except ValueError:  # a zero byte; whoever looks for it says that nothing is there
        pass


class Conversation:
    """Questions and answers that the model remembers, with their pictures."""

    def __init__(self, speaker: Speaker, manner: Manner) -> None:
        self._speaker, self._manner = speaker, manner
        self._dialogue = Dialogue()

    def ask(self, question: str, pictures: Pictures = ()) -> str:
        """Ask the next question; new pictures go with it, earlier ones stay in the conversation.

        Raises:
            UserError: a picture can't be read, or the conversation is too long. The question is then not kept.
        """
        question = _checked(question, "the question comes first, then the pictures")
        self._dialogue.pictures = _refs(pictures)
        asked = self._dialogue.asked(question)
        answer = _answer(self._speaker, asked, self._manner)
        self._dialogue.keep(asked, answer)
        return answer

    @property
    def messages(self) -> list[Message]:
        """What was said so far: each with its ``role`` (user or assistant), ``text`` and ``pictures``."""
        return list(self._dialogue.messages)

    def clear(self) -> None:
        """Start again."""
        self._dialogue.clear()


class Model:
    """A model that answers questions about pictures. Its memory is free again when it is deleted."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        note(speaker.note)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._speaker.name}>"

    def ask(
        self, pictures: Pictures, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 0.0
    ) -> str:
        """Ask one question; nothing is remembered.

        Args:
            pictures: a path, bytes, a PIL image, a list of those, or None.
            max_new_tokens: the most tokens of the answer. A warning says where it was cut.
            temperature: 0: always the likeliest token. Above: drawn, the more freely the higher.

        Raises:
            UserError: a picture can't be read, or all is too long for the model.
        """
        question, manner = _checked(question, "the picture comes first"), _manner(max_new_tokens, temperature)
        return _answer(self._speaker, Dialogue(pictures=_refs(pictures)).asked(question), manner)

    def chat(self, *, max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 0.0) -> Conversation:
        """Start a conversation.

        Raises:
            UserError: a number is out of bounds.
        """
        return Conversation(self._speaker, _manner(max_new_tokens, temperature))

    def evaluate(self, *records: Any, **options: Any) -> EvalResult:
        """Only a run's model can be evaluated.

        Raises:
            UserError: this is none.
        """
        raise UserError(
            f"{self._speaker.name} is no run, and scores need to know what was trained on; open the run that it was "
            "exported from with open_run, or ask it"
        )


class TrainedModel(Model):
    """The model of a run: it can also be evaluated.

    Attributes:
        folder: the folder that was opened.
        bundle: the bundle inside it whose weights these are.
        recipe: the run's recipe.
        step: optimizer steps that these weights have had.
    """

    def __init__(self, speaker: RunSpeaker, folder: Path) -> None:
        super().__init__(speaker)
        self._run = speaker
        self.folder = folder
        self.bundle: Path = speaker.bundle.folder
        self.recipe: Recipe = speaker.recipe
        self.step: int = speaker.bundle.step

    def evaluate(
        self,
        records: Rows,
        *,
        image_dir: str | os.PathLike[str] | None = None,
        batch_size: int = AT_ONCE,
        max_new_tokens: int | None = None,
        limit: int | None = None,
        template: Template | None = None,
        metric: MetricName | None = None,
        controls: int = MOST_ASKED_AGAIN,
        benchmark: str | None = None,
        annotations: str | os.PathLike[str] | None = None,
        instruction: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> EvalResult:
        """Answer questions and score the answers, as ``basic-lite eval`` does. Writes nothing.

        Args:
            records: a file of questions with answers; such records, as dicts whose pictures are paths, bytes or PIL
                images; or the data of a recipe (``recipe.data.train``).
            image_dir: folder that picture paths are relative to. Default: beside the file; for dicts, where the
                program runs.
            max_new_tokens: the most tokens of an answer; None: as the longest answer in the data, and 8 more.
            limit: take only the first so many.
            metric: how answers are scored; None: as the benchmark does it, else by exact match.
            controls: the most questions that are asked again, with another picture and without one; 0: none.
            benchmark: the benchmark that a file is of; None: as the file says.
            annotations: the file of the answers, for VQAv2; None: beside that of the questions.
            instruction: what is added to a benchmark's questions; None: what LLaVA-1.5 adds.
            progress: called with the number of answers that were just made; None: a bar on a terminal.

        Raises:
            UserError: a record has no question, a picture can't be read, or memory runs out.
        """
        for name, value in {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "limit": limit}.items():
            if value is not None or name == "batch_size":
                _require_whole(name, value)
        if controls != 0:
            _require_whole("controls", controls)
        for name, place in {"image_dir": image_dir, "annotations": annotations}.items():
            if place is not None:
                _require_path(place, name, "path")
        path = os.fspath(records) if isinstance(records, str | os.PathLike) else ""
        file = File(path, image_dir, limit, benchmark, annotations, instruction)
        asked = _asked(records, file, self.recipe)
        rule = asked.metric(metric)
        check_pictures([one.record for one in asked.questions])
        ready = make_ready(
            self._run.loaded,
            self._run.bundle,
            asked,
            shown := Console(stderr=True),
            data=os.path.abspath(path) if path else None,
            file=file,
            max_new_tokens=max_new_tokens,
            template=template,
            metric=rule.name,
            controls=controls,
        )
        for line in ready.trained.notes():
            note(line)
        enough = enough_for(batch_size, "batch_size", 'lower max_new_tokens, or open the run with device="cpu"')
        with enough, counting(shown, "answering", ready.answers) as count:
            return ready.evaluate(batch_size, progress or count)


def _asked(records: Rows, file: File, recipe: Recipe) -> Asked:
    """The questions; ``file``: how they are read, if ``records`` names one."""
    if isinstance(records, str | os.PathLike):
        return read_asked(file, recipe)
    if file.option is not None:
        option = file.option.removeprefix("--")
        raise UserError(f"{option} belongs to the file of a benchmark, and records is {shorten(records)}; leave it out")
    return Asked(as_questions(_records(records, file.image_dir, file.limit)))


def _records(records: Any, image_dir: str | os.PathLike[str] | None, limit: int | None) -> list[Record]:
    records = [records] if isinstance(records, SourceSection) else records
    if isinstance(records, Mapping | BaseModel) or not isinstance(records, Iterable):
        raise UserError(
            f"records is {shorten(records)}; give a file, a list of dicts, or the data "
            "of a recipe, as in recipe.data.train"
        )
    several = list(records)
    if sections := [one for one in several if isinstance(one, SourceSection)]:
        if len(sections) < len(several) or image_dir is not None:
            raise UserError("the data of a recipe names its pictures' folder, and stands alone; leave the rest out")
        return load_records(sections, root=Path.cwd())[:limit]
    found = records_of([one for one in several if not isinstance(one, SourceSection)], image_dir)[:limit]
    if not found:
        raise UserError("there is no record to evaluate; give at least one")
    return found


def _require_whole(name: str, value: object) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name} is {shorten(value)}; give a whole number, at least 1")


def _manner(max_new_tokens: int, temperature: float) -> Manner:
    _require_whole("max_new_tokens", max_new_tokens)
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {shorten(temperature)}; give 0 for the likeliest answer, or a number above it")
    require_temperature(temperature, "temperature")
    # Of numpy's numbers, which transformers takes for none.
    return Manner(int(max_new_tokens), float(temperature))


def _answer(speaker: Speaker, asked: list[Message], manner: Manner) -> str:
    reply = speaker.reply(asked, manner)
    answer = "".join(reply)
    if reply.cut:
        # Of the caller's line: ``ask`` and this function lie between.
        warnings.warn(f"the answer was cut: {reply.why_cut(manner.max_new_tokens, 'max_new_tokens')}", stacklevel=3)
    return answer


def _checked(question: str, order: str) -> str:
    if not isinstance(question, str):
        raise UserError(f"the question is a text, and this is {shorten(question)}; {order}")
    if not question.strip():
        raise UserError("the question is empty; write one")
    if is_picture(question):
        raise UserError(f"{question} is a picture, and it stands where the question belongs; {order}")
    return clean(question)


def _refs(pictures: Any) -> list[ImageRef]:
    if pictures is None:
        return []
    texts = str | os.PathLike | bytes | bytearray | memoryview | Mapping
    if isinstance(pictures, texts) or hasattr(pictures, "read") or not isinstance(pictures, Iterable):
        return [_ref(pictures)]
    return [_ref(one) for one in pictures]


def _ref(one: Any) -> ImageRef:
    if isinstance(one, str | os.PathLike):
        return picture(os.fspath(one))
    ref = picture_of(one)
    require_picture(ref, ref.name)
    return ref
