"""Records as samples for the trainer: ids, labels and pixels of one record at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record, Records
from basic_lite.recipe.schema import ImageFit


class SupervisedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Map-style, picklable. Sample i is ``records[indices[i]]``.

    Args:
        indices: The records to use, as `DataReport.kept` has them; none: all.
    """

    def __init__(
        self,
        records: Records | Sequence[Record],
        chat: ChatFormat,
        image_processor: Any,
        image_fit: ImageFit,
        max_length: int,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.records = records
        self.chat = chat
        self.image_processor = image_processor
        self.image_fit: ImageFit = image_fit
        self.max_length = max_length
        self.indices = np.arange(len(records)) if indices is None else np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        """The record behind a sample.

        Raises:
            RecordProblem: it is no usable conversation.
        """
        record: Record = self.records[int(self.indices[index])]
        return record

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` and ``labels`` (lists of length T), and ``pixel_values`` [n, 3, h, w] where n > 0.

        Raises:
            RecordProblem: the record or one of its images can't be used; names source and record number.
        """
        record = self.record(index)
        encoded = self.chat.encode(record, self.max_length)
        sample: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
        if record.images:
            try:
                sample["pixel_values"] = pixels(record.images, self.image_processor, self.image_fit)
            except RecordProblem as problem:
                raise problem.at(record.place) from problem.__cause__
        return sample
