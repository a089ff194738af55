"""``basic-lite eval``: greedy answers, exact match overall and by question type, predictions as JSON lines."""

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from basic_lite.console import Say, counting, quiet_libraries, show, speaker
from basic_lite.data.chat import ChatFormat
from basic_lite.data.guess import source_of
from basic_lite.data.images import ImageRef, check_image, picture_key
from basic_lite.data.problems import BadRecord, RecordProblem
from basic_lite.data.prompts import asked_as_trained
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record
from basic_lite.data.sources import load_records
from basic_lite.data.turns import clean
from basic_lite.errors import UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import Loaded, pick_device
from basic_lite.printable import printable
from basic_lite.recipe.schema import Recipe, Template
from basic_lite.tools.predictions import Prediction, free_place, require_free, require_writable, why_kept
from basic_lite.tools.score import EvalResult, normalise, remarks, score_table
from basic_lite.training.answer import answer, answer_length, asked_otherwise, chat_format
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import Bundle, look_at_bundle
from basic_lite.training.files import saving, sha256
from basic_lite.training.places import HELD_OUT, MANIFEST
from basic_lite.training.run_data import held_out_records
from basic_lite.training.trained_on import Compared, compare, record_of


def evaluate(
    loaded: Loaded,
    recipe: Recipe,
    records: Sequence[Record],
    *,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    shuffle_images: int | None = None,
    template: Template | None = None,
    trained: Sequence[bool | None] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> EvalResult:
    """Answer the last question of every record and score it.

    Args:
        max_new_tokens: the most tokens of an answer; None: as many as the longest reference has, and 8 more.
        template: format of the questions; None: the training's (see ``chat_format``).
        shuffle_images: a seed. Each question is then asked about the images of another record that has as many. That
            shows how much the answers owe to the picture.
        trained: of each record, whether the run was trained on it; None: it can't be told.

    Raises:
        RecordProblem: a record has no question.
    """
    chat = chat_format(recipe, loaded, template)
    records = asked_as_trained(records, recipe.data)
    if chat.template != "plain":
        _require_questions(records)
    shown = (lambda i: records[i].images) if shuffle_images is None else other_images(records, shuffle_images)
    most = max_new_tokens or answer_length(chat, records)
    _require_room(loaded, chat, records)
    cut: set[int] = set()
    texts = answer(
        loaded,
        chat,
        records,
        image_fit=recipe.data.image_fit,
        batch_size=batch_size,
        max_new_tokens=most,
        images=shown,
        progress=progress,
        cut=cut.add,
    )
    references = [chat.reference(record) for record in records]
    predictions = [
        Prediction(
            number=record.number,
            id=record.id,
            question_type=record.question_type or "",
            images=[clean(image.name) for image in shown(i)],
            question=question_of(record),
            reference=reference,
            prediction=text,
            correct=normalise(text) == normalise(reference) if reference else None,
            cut=i in cut,
            trained_on=None if trained is None else trained[i],
        )
        for i, (record, reference, text) in enumerate(zip(records, references, texts, strict=True))
    ]
    return EvalResult(predictions, most)


def _require_room(loaded: Loaded, chat: ChatFormat, records: Sequence[Record]) -> None:
    """Refuse a question that is longer than what the model reads: the answer would be noise."""
    limit = getattr(loaded.frontend.config.text_config, "max_position_embeddings", None)
    if limit is None:
        return
    for record in records:
        if (length := len(chat.prompt(record))) >= limit:
            raise BadRecord(
                f"its question has {length:,} tokens, pictures included, and this model reads {limit:,} at most",
                "shorten it, or take the record out",
                record.place,
            )


def question_of(record: Record) -> str:
    """The question that is asked: the last human turn as the record has it, or nothing."""
    return next((turn.text for turn in reversed(record.turns) if turn.role == "human"), "")


def other_images(records: Sequence[Record], seed: int) -> Callable[[int], tuple[ImageRef, ...]]:
    """For each record the images of another record with as many images; different images wherever there are any."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[len(record.images)].append(index)
    partner = list(range(len(records)))
    generator = random.Random(seed)
    for members in groups.values():
        shuffled = members[:]
        generator.shuffle(shuffled)
        # Several questions may share a picture: walk on until the picture is another one.
        for place, index in enumerate(shuffled):
            for step in range(1, len(shuffled)):
                candidate = shuffled[(place + step) % len(shuffled)]
                if records[candidate].images != records[index].images:
                    partner[index] = candidate
                    break
    return lambda index: records[partner[index]].images


def made_with(
    bundle: Bundle,
    records: Sequence[Record],
    trained: Compared,
    chat: ChatFormat,
    *,
    data: str | None,
    image_dir: str | os.PathLike[str] | None,
    limit: int | None,
    max_new_tokens: int | None,
) -> dict[str, Any]:
    """The settings of an evaluation, and what tells its model and its data from any others.

    Args:
        trained: the records, compared with what the run was trained on.
        data: the file's path; None: the records come from none.
        max_new_tokens: None: as many as the records' own answers need.

    Raises:
        BadImage: a picture is missing.
    """
    digest = hashlib.sha256()
    for one in records:
        pictures = [picture_key(image) for image in one.images]
        text = [one.number, one.id, one.question_type, one.answer, [asdict(turn) for turn in one.turns], pictures]
        digest.update(json.dumps(text).encode())
    return {
        "bundle": bundle.folder.name,
        "step": bundle.step,
        "model_sha256": sha256(bundle.folder / MANIFEST),
        "data": data,
        "image_dir": None if image_dir is None else os.path.abspath(image_dir),
        "limit": limit,
        "template": chat.template,
        "max_new_tokens": max_new_tokens or answer_length(chat, records),
        # Predictions of which less is known don't replace others.
        "not_known": trained.marks.count(None),
        "data_sha256": digest.hexdigest(),
    }


def check_pictures(records: Iterable[Record]) -> None:
    """Open all pictures before the first answer, and not in the middle.

    Raises:
        RecordProblem: one is missing, or can't be decoded.
    """
    for record in records:
        try:
            for image in record.images:
                check_image(image, "open")
        except RecordProblem as problem:
            raise problem.at(record.place) from problem


def _require_questions(records: Iterable[Record]) -> None:
    for record in records:
        if not question_of(record).replace(IMAGE_PLACEHOLDER, "").strip():
            raise BadRecord(
                "it has no question: no human turn with text",
                "write one; captions are asked for without, in the plain template (--template plain)",
                record.place,
            )


def evaluate_run(
    run: Path,
    data: Path | None = None,
    *,
    held_out: bool = False,
    image_dir: Path | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    out: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    template: Template | None = None,
    console: Console | None = None,
) -> EvalResult:
    """Evaluate a run folder or bundle, print the table, write predictions and summary.

    Args:
        data: file or folder of questions.
        held_out: instead of it, the records that the run kept for evaluation.

    Raises:
        UserError: no usable bundle, or bad data.
    """
    if (data is None) != held_out:
        raise UserError("give --data FILE, or --held-out for the questions that the run kept; one of both")
    if held_out and image_dir is not None:
        raise UserError("--image-dir belongs to --data; with --held-out the pictures are where the recipe says")
    console = console or Console(highlight=False)
    notes = Console(stderr=True, highlight=False)
    quiet_libraries()
    if data is None:
        records = held_out_records(look_at_bundle(run))[:limit]
    else:
        records = read_questions(data, image_dir, limit)
    check_pictures(records)
    if out is not None:
        require_free(out, None, "--out")
        require_writable(out, "--out")
    place = pick_device(device, "--device")
    say = speaker(notes)
    tell_device(place, device, say)
    loaded, bundle = load_trained(run, place)
    chat = chat_format(bundle.recipe, loaded, template)
    if template is None and (note := asked_otherwise(bundle.recipe, chat)):
        say(note)
    trained = compare(record_of(bundle, partial(counting, notes, "comparing")), records)
    name = HELD_OUT if data is None else os.path.abspath(data)
    settings = made_with(
        bundle, records, trained, chat, data=name, image_dir=image_dir, limit=limit, max_new_tokens=max_new_tokens
    )
    if out is not None:
        require_free(out, settings, "--out")
    say(f"evaluating {bundle.folder} (step {bundle.step} of {bundle.manifest['total_steps']})")
    for line in trained.notes():
        say(line)
    if several := several_questions(records):
        say(several)
    with counting(notes, "answering", len(records)) as count:
        result = evaluate(
            loaded,
            bundle.recipe,
            records,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            template=template,
            trained=trained.marks,
            progress=count,
        )
    result = replace(result, settings=settings)
    # A bundle's own folder stays as its manifest describes it.
    folder = bundle.folder.parent if run == bundle.folder else run
    wanted = out or folder / f"predictions_{HELD_OUT if data is None else data.stem}_{bundle.folder.name}.jsonl"
    _show(result, console, say)
    _save(result, wanted, console, say)
    return result


def _save(result: EvalResult, wanted: Path, console: Console, say: Say) -> None:
    """Write the predictions there, or where nothing is lost, and say so."""
    target = free_place(wanted, result.settings)
    if why := why_kept(wanted, result.settings):
        say(f"note: {why}, so it is kept, and these go to {target.name}")
    replaced = " (replaced)" if target.exists() else ""
    with saving(target, "Make room, or name another file with --out"):
        result.save(target)
    console.print(printable(f"predictions: {target}{replaced}"), soft_wrap=True, markup=False)


def several_questions(records: list[Record]) -> str | None:
    """The note on records with several questions; None where there are none."""
    several = sum(1 for record in records if sum(turn.role == "human" for turn in record.turns) > 1)
    what = "only the last one is asked, the others are its context"
    return f"note: {several} records have several questions; {what}" if several else None


def read_questions(data: Path, image_dir: Path | None, limit: int | None) -> list[Record]:
    """The records of a file or folder."""
    return list(load_records(source_of(data, image_dir=image_dir, limit=limit), root=Path.cwd()))


def _show(result: EvalResult, console: Console, say: Say) -> None:
    if result.counts:
        show(console, score_table(result))
    else:
        console.print("the data has no reference answers, so nothing was scored")
    for line in remarks(result):
        say(line)
    if result.cut:
        were = "was" if result.cut == 1 else "were"
        say(
            f"{result.cut} of {len(result.predictions)} answers {were} cut at {result.max_new_tokens} tokens "
            "(--max-new-tokens allows more)"
        )
