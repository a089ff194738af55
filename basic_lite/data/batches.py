"""Records as samples for the trainer (ids, labels and pixels of one record), and samples to a padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from basic_lite.data.chat import ChatFormat
from basic_lite.data.pixel_table import TABLE
from basic_lite.data.pixels import pixel_parts
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import UserError
from basic_lite.recipe.schema import ImageFit, PaddingSide


@dataclass(eq=False)
class SupervisedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Map-style, picklable. Sample i is ``records[indices[i]]``, as `DataReport.kept` has the indices [n]."""

    records: Sequence[Record]
    chat: ChatFormat
    image_processor: Any
    image_fit: ImageFit
    max_length: int
    indices: np.ndarray
    jpeg_draft: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        """The record behind a sample.

        Raises:
            RecordProblem: it is no usable conversation.
        """
        return self.records[int(self.indices[index])]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` and ``labels`` (lists of length T), and what ``pixel_parts`` gives of n images where n > 0.

        Raises:
            RecordProblem: the record or one of its images can't be used; names source and record number.
        """
        record = self.record(index)
        encoded = self.chat.encode(record, self.max_length)
        sample: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
        if record.images:
            try:
                sample |= pixel_parts(record.images, self.image_processor, self.image_fit, draft=self.jpeg_draft)
            except RecordProblem as problem:
                raise problem.at(record.place) from problem.__cause__
        return sample


@dataclass(frozen=True)
class Collator:
    """Pads to the longest sample. Picklable.

    Returns ``input_ids``, ``attention_mask`` and ``labels`` [B, T] int64 (labels `IGNORE` at padding; left
    out when no sample has any, as for generation), and ``pixel_values`` [I, 3, h, w] float32 where I > 0: all
    images of row 0 in the order of their placeholders, then those of row 1, and so on. Bytes [I, h, w, 3] stay bytes,
    and their ``pixel_table`` comes along: see ``on_device``.
    """

    pad_token_id: int
    padding_side: PaddingSide = "right"

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        size = (len(samples), longest)
        ids, mask = np.full(size, self.pad_token_id, np.int64), np.zeros(size, np.int64)
        labels = np.full(size, IGNORE, np.int64)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            where = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            ids[row, where] = sample["input_ids"]
            mask[row, where] = 1
            if "labels" in sample:
                labels[row, where] = sample["labels"]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if any("labels" in sample for sample in samples):
            batch["labels"] = torch.from_numpy(labels)
        if images := [sample["pixel_values"] for sample in samples if len(sample.get("pixel_values", ()))]:
            shapes = {tuple(one.shape[1:]) for one in images}
            if len(shapes) > 1:
                raise UserError(
                    f"the image processor gives images of different sizes "
                    f"({', '.join(map(str, sorted(shapes)))}); it must resize to one size: correct "
                    f"preprocessor_config.json of model.vision."
                )
            # One image needs no other copy.
            pictures = torch.cat(images) if len(images) > 1 else images[0]
            if tables := [sample[TABLE] for sample in samples if TABLE in sample]:
                batch |= {"pixel_values": pictures, TABLE: tables[0]}  # all samples have one processor
            else:
                batch["pixel_values"] = pictures.to(torch.float32)
        return batch
