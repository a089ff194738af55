"""``basic-lite eval``: greedy answers and their score, with another picture and without one too."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from basic_lite.choices import require_one_of, require_questions_named
from basic_lite.console import Say, counting, quiet_libraries, show, speaker
from basic_lite.data.chat import ChatFormat
from basic_lite.data.digests import digests_of
from basic_lite.data.images import picture_key
from basic_lite.data.records import Record
from basic_lite.errors import NoMemory, UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import Loaded, pick_device
from basic_lite.printable import printable
from basic_lite.recipe.schema import Recipe, Template
from basic_lite.scoring.controls import MOST_ASKED_AGAIN, Again, asked_again, other_images
from basic_lite.scoring.metrics.named import MetricName, metric_named
from basic_lite.scoring.questions import Question, as_questions, check_pictures, ready_to_ask, several_questions
from basic_lite.tools.asked import Asked, File, read_asked
from basic_lite.tools.predictions import free_place, require_free, require_writable, why_kept
from basic_lite.tools.score import EvalResult, remarks, score_table
from basic_lite.training.answer import AT_ONCE, answer_length, asked_otherwise, chat_format, enough_for
from basic_lite.training.answer_file import FIX, Answers, answers_kept, part_of
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import Bundle, look_at_bundle
from basic_lite.training.files import saving
from basic_lite.training.interview import Interview, Pictures, ways
from basic_lite.training.places import HELD_OUT, best_record
from basic_lite.training.run_data import held_out_records
from basic_lite.training.trained_on import Compared, compare, record_of


def evaluate(
    loaded: Loaded,
    recipe: Recipe,
    records: Sequence[Record | Question],
    *,
    batch_size: int = AT_ONCE,
    max_new_tokens: int | None = None,
    shuffle_images: int | None = None,
    template: Template | None = None,
    trained: Sequence[bool | None] | None = None,
    metric: MetricName = "exact",
    again: Again | None = None,
    kept: Answers | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> EvalResult:
    """Answer the last question of every record and score it.

    Args:
        max_new_tokens: the most tokens of an answer; None: as many as the longest reference has, and 8 more.
        template: format of the questions; None: the training's (see ``chat_format``).
        shuffle_images: a seed. Each question is then asked about the images of another record that has as many.
        trained: of each record, whether the run was trained on it; None: it can't be told.
        again: what is asked again with another picture and without one (``asked_again``); None: nothing.
        kept: answers that are there already; the others are added.

    Raises:
        RecordProblem: a record has no question, or too few right answers for the metric.
    """
    chat, rule = chat_format(recipe, loaded.frontend, template), metric_named(metric)
    questions = as_questions(records)
    asked = ready_to_ask(questions, recipe.data, loaded.frontend, chat, rule)
    pictures: Pictures = lambda at: asked[at].images  # noqa: E731
    if shuffle_images is not None:
        pictures = other_images(asked, shuffle_images)
    most = max_new_tokens or answer_length(chat, asked)
    interview = Interview(loaded, recipe, chat, batch_size, most, kept or Answers(), progress)
    for way in ways(asked, pictures, again):
        interview.ask(*way)
    predictions = [
        replace(
            interview.prediction(at, question, asked[at], pictures(at), rule),
            trained_on=None if trained is None else trained[at],
            image_digests=digests_of(pictures(at)),
        )
        for at, question in enumerate(questions)
    ]
    return EvalResult(predictions, most, metric=metric)


@dataclass(frozen=True)
class Ready:
    """Questions that a run is about to be asked, and all that decides its answers and their score.

    ``settings`` tell its model, its data and the way it is asked from any others.
    """

    loaded: Loaded
    bundle: Bundle
    asked: Asked
    chat: ChatFormat
    trained: Compared
    again: Again
    settings: dict[str, Any]

    @property
    def answers(self) -> int:
        """How many there will be."""
        return len(self.asked.questions) + self.again.answers

    def evaluate(self, batch_size: int, progress: Callable[[int], None], kept: Answers | None = None) -> EvalResult:
        """Ask them; ``kept``, ``progress``: see ``evaluate``."""
        found = evaluate(
            self.loaded,
            self.bundle.recipe,
            self.asked.questions,
            batch_size=batch_size,
            max_new_tokens=self.settings["max_new_tokens"],
            template=self.chat.template,
            trained=self.trained.marks,
            metric=self.settings["metric"],
            again=self.again,
            kept=kept,
            progress=progress,
        )
        return replace(found, settings=self.settings)


def make_ready(
    loaded: Loaded,
    bundle: Bundle,
    asked: Asked,
    console: Console,
    *,
    data: str | None,
    file: File,
    max_new_tokens: int | None,
    template: Template | None,
    metric: MetricName,
    controls: int,
) -> Ready:
    """Compare the questions with what the run was trained on, and choose those that are asked again.

    Args:
        console: counts what is compared.
        data: the file's path; None: the records come from none.
        file: how it was read.
        max_new_tokens: None: as many as the records' own answers need.

    Raises:
        BadImage: a picture is missing.
        UserError: there is no such template.
    """
    if template is not None:
        require_one_of(template, get_args(Template), "template")
    chat = chat_format(bundle.recipe, loaded.frontend, template)
    records = [one.record for one in asked.questions]
    trained = compare(record_of(bundle, partial(counting, console, "comparing")), records)
    settings = {
        "bundle": bundle.folder.name,
        "step": bundle.step,
        "model_sha256": bundle.digest,
        "data": data,
        "image_dir": None if file.image_dir is None else os.path.abspath(file.image_dir),
        "limit": file.limit,
        "benchmark": asked.benchmark.name if asked.benchmark is not None else None,
        "instruction": asked.added if asked.benchmark is not None else None,
        "metric": metric,
        "controls": controls,
        "template": chat.template,
        "max_new_tokens": max_new_tokens or asked.tokens(answer_length(chat, records)),
        # Predictions of which less is known don't replace others.
        "not_known": trained.marks.count(None),
        "data_sha256": _digest(asked),
    }
    return Ready(loaded, bundle, asked, chat, trained, asked_again(asked.questions, controls, chat), settings)


def _digest(asked: Asked) -> str:
    digest = hashlib.sha256()
    for question in asked.questions:
        one = question.record
        pictures = [picture_key(image) for image in one.images]
        turns = [{"role": turn.role, "text": turn.text} for turn in one.turns]
        text = [one.number, one.id, one.question_type, one.answer, turns, pictures]
        digest.update(json.dumps([*text, question.answers, question.groups, question.circle]).encode())
    return digest.hexdigest()


def evaluate_run(
    run: Path,
    data: Path | None = None,
    *,
    held_out: bool = False,
    image_dir: Path | None = None,
    batch_size: int = AT_ONCE,
    max_new_tokens: int | None = None,
    out: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    template: Template | None = None,
    metric: MetricName | None = None,
    controls: int = MOST_ASKED_AGAIN,
    benchmark: str | None = None,
    annotations: Path | None = None,
    instruction: str | None = None,
    console: Console | None = None,
) -> EvalResult:
    """Evaluate a run folder or bundle, print the table, write predictions and summary.

    Args:
        data: file or folder of questions.
        held_out: instead of it, the records that the run kept for evaluation.
        metric: None: the benchmark's own, else exact match.
        controls: so many questions with pictures, at most, are asked again with another picture and without one.
        benchmark, annotations, instruction: see ``File``.

    Raises:
        UserError: no usable bundle, or bad data.
        KeyboardInterrupt, NoMemory: it was stopped; its answers are kept, and the same call goes on, with any batch.
    """
    file = File(data or Path(), image_dir, limit, benchmark, annotations, instruction)
    asked = _asked(run, file, held_out=held_out, named=data is not None)
    console = console or Console(highlight=False)
    say = speaker(notes := Console(stderr=True, highlight=False))
    rule, records = asked.metric(metric), [one.record for one in asked.questions]
    check_pictures(records)
    if out is not None:
        require_free(out, None, "--out")
        require_writable(out, "--out")
    loaded, bundle = _loaded(run, device, say, named=data is not None)
    ready = make_ready(
        loaded,
        bundle,
        asked,
        notes,
        data=HELD_OUT if data is None else os.path.abspath(data),
        file=file,
        max_new_tokens=max_new_tokens,
        template=template,
        metric=rule.name,
        controls=controls,
    )
    otherwise = asked_otherwise(bundle.recipe, ready.chat) if template is None else ""
    several = several_questions(records)
    for line in filter(None, (otherwise, *ready.trained.notes(), *asked.notes(), several, ready.again.note)):
        say(line)
    wanted, total = _place(run, bundle, data, out, ready.settings), ready.answers
    enough = enough_for(batch_size, "--batch", "lower --max-new-tokens, or give --device cpu")
    with _going_on(wanted, ready.settings, total, say) as kept, enough, counting(notes, "answering", total) as count:
        result = ready.evaluate(batch_size, count, kept)
        _show(result, console, say)
        _save(result, wanted, console, say)
        return result


def _asked(run: Path, file: File, *, held_out: bool, named: bool) -> Asked:
    """The questions of a file, or those that a run kept; ``named``: somebody named a file."""
    require_questions_named(data=named, held_out=held_out)
    quiet_libraries()
    bundle = look_at_bundle(run)
    if not held_out:
        return read_asked(file, bundle.recipe)
    if file.image_dir is not None:
        raise UserError("--image-dir belongs to --data; with --held-out the pictures are where the recipe says")
    if file.option is not None:
        raise UserError(f"{file.option} belongs to a benchmark's file; name it with --data instead of --held-out")
    return Asked(as_questions(held_out_records(bundle)[: file.limit]))


def _loaded(run: Path, device: str, say: Say, *, named: bool) -> tuple[Loaded, Bundle]:
    place = pick_device(device, "--device")
    tell_device(place, device, say)
    loaded, bundle = load_trained(run, place)
    say(f"evaluating {bundle.folder} (step {bundle.step} of {bundle.manifest['total_steps']})")
    if not named and best_record(bundle.folder) is not None:
        say(
            "note: such questions chose this step among others, so its score seems better than it is; ask others with "
            "--data for a fair one"
        )
    return loaded, bundle


def _place(run: Path, bundle: Bundle, data: Path | None, out: Path | None, settings: dict[str, Any]) -> Path:
    """Where the predictions go: ``out``, or the run's folder. A bundle's own stays as its manifest describes it."""
    if out is not None:
        require_free(out, settings, "--out")
        return out
    folder = bundle.folder.parent if run == bundle.folder else run
    return folder / f"predictions_{HELD_OUT if data is None else data.stem}_{bundle.folder.name}.jsonl"


@contextmanager
def _going_on(wanted: Path, settings: dict[str, Any], total: int, say: Say) -> Iterator[Answers]:
    """The answers of this evaluation that are there already; those that come are kept, whatever happens."""
    target = free_place(wanted, settings)
    part = part_of(target)
    with answers_kept(target, settings) as kept:
        if kept.found:
            say(f"going on: {len(kept.found):,} of {total:,} answers are in {part.name} already")
        try:
            yield kept
        except (KeyboardInterrupt, NoMemory):
            say(f"{len(kept.found):,} of {total:,} answers are kept in {part}; the same command goes on from there")
            raise


def _save(result: EvalResult, wanted: Path, console: Console, say: Say) -> None:
    """Write the predictions there, or where nothing is lost, and say so."""
    target = free_place(wanted, result.settings)
    if why := why_kept(wanted, result.settings):
        say(f"note: {why}, so it is kept, and these go to {target.name}")
    replaced = " (replaced)" if target.exists() else ""
    with saving(target, FIX):
        result.save(target)
    console.print(printable(f"predictions: {target}{replaced}"), soft_wrap=True, markup=False)


def _show(result: EvalResult, console: Console, say: Say) -> None:
    if result.counts:
        show(console, score_table(result))
    else:
        console.print("the data has no reference answers, so nothing was scored")
    if result.controls is not None:
        for line in result.controls.lines():
            speaker(console)(line)
    for line in remarks(result):
        say(line)
    if result.cut:
        were = "was" if result.cut == 1 else "were"
        say(
            f"{result.cut} of {len(result.predictions)} answers {were} cut at {result.max_new_tokens} tokens "
            "(--max-new-tokens allows more)"
        )
