"""``basic-lite eval``: greedy answers, exact match overall and by question type, predictions as JSON lines."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from basic_lite.console import Sheet, counting, quiet_libraries, show, speaker
from basic_lite.data.guess import source_of
from basic_lite.data.images import ImageRef, check_image
from basic_lite.data.problems import RecordProblem
from basic_lite.data.prompts import asked_as_trained
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import Loaded, pick_device
from basic_lite.recipe.schema import Recipe, Template
from basic_lite.training.answer import answer, asked_otherwise, chat_format
from basic_lite.training.bundle import load_trained
from basic_lite.training.files import write_json

ALL = "all"


@dataclass(frozen=True)
class Prediction:
    """One answered question. ``correct`` is None where the record has no reference answer."""

    number: int
    id: str
    question_type: str
    question: str
    reference: str
    prediction: str
    correct: bool | None


@dataclass(frozen=True)
class EvalResult:
    """Predictions in the order of the data, and the exact-match share by question type (``all``: overall)."""

    predictions: list[Prediction]
    accuracy: dict[str, float]
    counts: dict[str, int]


def normalise(text: str) -> str:
    """What exact match compares: lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def evaluate(
    loaded: Loaded,
    recipe: Recipe,
    records: Sequence[Record],
    *,
    batch_size: int = 16,
    shuffle_images: int | None = None,
    template: Template | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> EvalResult:
    """Answer the last question of every record and score it.

    Args:
        template: format of the questions; None: the training's (see ``chat_format``).
        shuffle_images: a seed. Each question is then asked about the images of another record that has as many. That
            shows how much the answers owe to the picture.
    """
    chat = chat_format(recipe, loaded, template)
    records = asked_as_trained(records, recipe.data)
    texts = answer(
        loaded,
        chat,
        records,
        image_fit=recipe.data.image_fit,
        batch_size=batch_size,
        images=None if shuffle_images is None else other_images(records, shuffle_images),
        progress=progress,
    )
    references = [chat.reference(record) for record in records]
    predictions = [
        Prediction(
            number=record.number,
            id=record.id,
            question_type=record.question_type or "",
            question=next((turn.text for turn in reversed(record.turns) if turn.role == "human"), ""),
            reference=reference,
            prediction=text,
            correct=normalise(text) == normalise(reference) if reference else None,
        )
        for record, reference, text in zip(records, references, texts, strict=True)
    ]
    return score(predictions)


def score(predictions: list[Prediction]) -> EvalResult:
    """Exact match by question type and overall, over the predictions that have a reference."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prediction in predictions:
        if prediction.correct is not None:
            groups[ALL].append(prediction.correct)
            if prediction.question_type:
                groups[prediction.question_type].append(prediction.correct)
    ordered = sorted(groups, key=lambda name: (name == ALL, name))
    return EvalResult(
        predictions,
        {name: sum(groups[name]) / len(groups[name]) for name in ordered},
        {name: len(groups[name]) for name in ordered},
    )


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


def accuracy_table(columns: dict[str, dict[str, float]], counts: dict[str, int]) -> Sheet:
    """A table of shares: a row for each question type, a column for each name."""
    table = Sheet(("question type", "n", *columns))
    for row in counts:
        if row == ALL:
            table.end_section()
        cells = [f"{values[row]:.3f}" if row in values else "–" for values in columns.values()]
        table.add(row, str(counts[row]), *cells, style="bold" if row == ALL else "")
    return table


def evaluate_run(
    run: Path,
    data: Path,
    *,
    image_dir: Path | None = None,
    batch_size: int = 16,
    out: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    template: Template | None = None,
    console: Console | None = None,
) -> EvalResult:
    """Evaluate a run folder or bundle on a LLaVA file, print the table, write predictions and summary.

    Raises:
        UserError: no usable bundle, or bad data.
    """
    console = console or Console(highlight=False)
    notes = Console(stderr=True, highlight=False)
    quiet_libraries()
    source = source_of(data, image_dir=image_dir, limit=limit)
    records = list(load_records(source, root=Path.cwd()))
    for record in records:  # before the first answer, not in the middle
        try:
            for image in record.images:
                check_image(image, "exists")
        except RecordProblem as problem:
            raise problem.at(record.place) from problem
    if out is not None:
        _require_writable(out)
    place = pick_device(device, "--device")
    tell_device(place, device, speaker(notes))
    loaded, bundle = load_trained(run, place)
    if template is None and (note := asked_otherwise(bundle.recipe, chat_format(bundle.recipe, loaded))):
        notes.print(note, markup=False)
    notes.print(f"evaluating {bundle.folder} (step {bundle.step} of {bundle.manifest['total_steps']})", markup=False)
    several = sum(1 for record in records if sum(turn.role == "human" for turn in record.turns) > 1)
    if several:
        notes.print(
            f"note: {several} records have several questions; only the last one is asked, the others are its context"
        )
    with counting(notes, "answering", len(records)) as count:
        result = evaluate(loaded, bundle.recipe, records, batch_size=batch_size, template=template, progress=count)
    # A bundle's own folder stays as its manifest describes it.
    folder = bundle.folder.parent if run == bundle.folder else run
    target = out or folder / f"predictions_{data.stem}_{bundle.folder.name}.jsonl"
    write_predictions(result, target)
    if result.counts:
        show(console, accuracy_table({"exact match": result.accuracy}, result.counts))
    else:
        console.print("the data has no reference answers, so nothing was scored")
    console.print(f"predictions: {target}", soft_wrap=True)
    return result


def _require_writable(path: Path) -> None:
    """Refuse an output file before the first answer, not after the last."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        raise UserError(f"--out: can't write {path} ({error.strerror or error}); name a file") from error


def write_predictions(result: EvalResult, path: Path) -> None:
    """One JSON object a prediction, and the summary beside it as ``.summary.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(vars(p), ensure_ascii=False) for p in result.predictions]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    write_json(path.with_suffix(".summary.json"), {"exact_match": result.accuracy, "counts": result.counts})
