"""Records of a run's data as training saw them, for the check of an export."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from basic_lite.data.check import policy
from basic_lite.data.conversation import conversation
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record, Records, Turn
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.tools.export.folder import Source
from basic_lite.training.run_data import held_out_in
from basic_lite.training.trained_on import compare, read_record

COMPARED_TOKENS = 32
"""Most tokens of a record's answer whose logits are compared."""


@dataclass(frozen=True)
class Sample:
    """One record as training saw it.

    Attributes:
        ids: [T], prompt and answer.
        prompt: the ids up to the answer.
        pixel_values: [n, 3, h, w], or None.
        rows: positions whose logits predict a token of the answer.
        held_out: the run kept it for evaluation, and none of these samples is known to be trained on.
    """

    record: Record
    ids: list[int]
    prompt: list[int]
    pixel_values: Tensor | None
    rows: Tensor
    held_out: bool = False


def choose_samples(source: Source, count: int) -> list[Sample]:
    """Up to ``count`` records of the run's data, evenly spread: held-out ones where there are any and they are known.

    Raises:
        UserError: the data can't be read any more.
    """
    section, run = source.bundle.recipe.data, source.bundle.folder.parent
    try:
        records = load_records(section.eval or section.train, root=Path.cwd())
        kept = None if section.held_out is None else held_out_in(records, run)
        held_out = section.eval is not None or kept is not None
        indices = range(len(records)) if kept is None else kept
        count = min(count, len(indices))
        chosen = [indices[place * len(indices) // count] for place in range(count)]
        samples = [sample for index in chosen if (sample := _sample(source, records, index)) is not None]
        if held_out and (known := read_record(run)) is not None:
            held_out = True not in compare(known, [sample.record for sample in samples]).marks
    except UserError as error:
        raise UserError(
            f"the check can't read the run's data here ({str(error).rstrip('.')}). "
            "Start this command where the run was started, or leave the check out with --no-check"
        ) from error
    if not samples:
        raise UserError("the check found no usable record in the run's data; leave it out with --no-check")
    return [replace(sample, held_out=held_out) for sample in samples]


def _sample(source: Source, records: Records, index: int) -> Sample | None:
    """None for a record that training would have dropped, or whose question has a special token as text.

    Training broke such a token up; processors read it as one, or refuse it.
    """
    section, chat = source.bundle.recipe.data, source.chat
    try:
        record = records[index]
        if any(chat.tokens.harmless(turn.text) != turn.text for turn in asked(record)):
            return None
        encoded = chat.encode(record, section.max_length)
        values = pixels_of(source, record.images)
    except RecordProblem as problem:
        if policy(problem, section) == "drop":
            return None
        raise
    rows = [place - 1 for place, label in enumerate(encoded.labels) if label >= 0][:COMPARED_TOKENS]
    return Sample(record, encoded.input_ids, chat.prompt(record), values, torch.tensor(rows))


def asked(record: Record) -> list[Turn]:
    """A record's turns up to its last question."""
    turns = conversation(record, answered=False)
    return turns[:-1] if turns[-1].role == "gpt" else turns


def pixels_of(source: Source, images: tuple[ImageRef, ...]) -> Tensor | None:
    """[n, 3, h, w] float32 as in training; None for no image."""
    fit = source.bundle.recipe.data.image_fit
    return pixels(images, source.frontend.image_processor, fit) if images else None
