"""Records of a run's data as training saw them, for the check of an export."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.images import ImageRef, pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record
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
    held_out: bool


def choose_samples(source: Source, count: int) -> list[Sample]:
    """Up to ``count`` records of the run's data, evenly spread: held-out ones where there are any and they are known.

    Raises:
        UserError: the data can't be read any more.
    """
    section = source.bundle.recipe.data
    try:
        records = load_records(section.eval or section.train, root=Path.cwd())
        kept = None if section.held_out is None else held_out_in(records, source.bundle.folder.parent)
        held_out = section.eval is not None or kept is not None
        indices = range(len(records)) if kept is None else kept
        count = min(count, len(indices))
        chosen = [records[indices[place * len(indices) // count]] for place in range(count)]
        if held_out and (known := read_record(source.bundle.folder.parent)) is not None:
            held_out = True not in compare(known, chosen).marks
        samples = [sample for record in chosen if (sample := _sample(source, record, held_out)) is not None]
    except UserError as error:
        raise UserError(
            f"the check can't read the run's data here ({str(error).rstrip('.')}). "
            "Start this command where the run was started, or leave the check out with --no-check"
        ) from error
    if not samples:
        raise UserError("the check found no usable record in the run's data; leave it out with --no-check")
    return samples


def _sample(source: Source, record: Record, held_out: bool) -> Sample | None:
    """None for a record that training would have dropped, or with the image token as text, which processors refuse."""
    recipe = source.bundle.recipe
    try:
        token = source.chat.tokens.image_text or IMAGE
        if any(token in turn.text for turn in conversation(record)):
            return None
        encoded = source.chat.encode(record, recipe.data.max_length)
        values = pixels_of(source, record.images)
    except RecordProblem:
        if recipe.data.bad_records == "drop":
            return None
        raise
    rows = [place - 1 for place, label in enumerate(encoded.labels) if label >= 0][:COMPARED_TOKENS]
    return Sample(record, encoded.input_ids, source.chat.prompt(record), values, torch.tensor(rows), held_out)


def pixels_of(source: Source, images: tuple[ImageRef, ...]) -> Tensor | None:
    """[n, 3, h, w] float32 as in training; None for no image."""
    fit = source.bundle.recipe.data.image_fit
    return pixels(images, source.frontend.image_processor, fit) if images else None
