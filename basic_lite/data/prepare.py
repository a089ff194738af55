"""A recipe's data section, made ready: records read and checked, samples, order, batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basic_lite.console import Say, counter
from basic_lite.data.batches import Collator, SupervisedDataset
from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import DataReport, check_data
from basic_lite.data.held_out import hold_out
from basic_lite.data.names import (
    BROKEN,
    EVAL,
    FINGERPRINT,
    HELD_OUT,
    HELD_OUT_FINGERPRINT,
    HELD_OUT_PICTURES,
    KNOWN_BEFORE,
    TRAIN,
)
from basic_lite.data.opened import cache_folder
from basic_lite.data.problems import RecordProblem
from basic_lite.data.prompts import with_prompts_of_training
from basic_lite.data.sampler import GroupedSampler
from basic_lite.data.sources import load_records
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.schema import Recipe, SourceSection


@dataclass(frozen=True)
class Prepared:
    """Training and held-out samples of a run, checked, with the order they come in."""

    train: SupervisedDataset
    report: DataReport
    sampler: GroupedSampler
    collator: Collator
    eval: SupervisedDataset | None
    eval_report: DataReport | None
    drops: bool = False  # a record that breaks in the run is left out; else it stops the run
    known_before: dict[str, Any] | None = None  # how much of ``eval`` is trained on; None: nobody has looked

    @property
    def eval_is_new(self) -> bool:
        """Whether none of ``eval`` is known to be trained on."""
        return self.known_before is None or not any(met for met, _ in self.known_before["of"].values())

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What is trained on, and what is held out: no loss of a run is compared with one of other data."""
        held_out = None if self.eval_report is None else self.eval_report.fingerprint
        return {FINGERPRINT: self.report.fingerprint, HELD_OUT_FINGERPRINT: held_out}

    def summary(self) -> dict[str, Any]:
        """Counts for the run folder, with every dropped record."""
        out: dict[str, Any] = {"train": _counts(self.report)}
        if self.eval is not None and self.eval_report is not None:
            out["eval"] = _counts(self.eval_report)
            if self.known_before is not None:
                out["eval"][KNOWN_BEFORE] = self.known_before
            if self.eval.records is self.train.records:
                out["eval"][HELD_OUT] = self.eval.indices.tolist()
                out["eval"][HELD_OUT_PICTURES] = self._held_out_pictures
        return out

    @cached_property
    def _held_out_pictures(self) -> list[list[str]]:
        """The names of each held-out record's pictures. Every record is read for it, so once."""
        assert self.eval is not None
        records = (self.eval.record(index) for index in range(len(self.eval)))
        return [[image.name for image in record.images] for record in records]

    @property
    def with_image(self) -> int:
        """How many samples with images ``samples_with_images`` has at most."""
        return sum(int(one.has_image.sum()) for one in (self.report, self.eval_report) if one is not None)

    def batches_with_images(self, count: int, size: int) -> list[dict[str, Tensor]]:
        """``count`` samples with images, as ``samples_with_images`` has them, in batches of ``size``."""
        return self.collated(self.samples_with_images(count), size)

    def collated(self, samples: Sequence[dict[str, Any]], size: int) -> list[dict[str, Tensor]]:
        """Samples as batches of ``size``; the last one may have fewer."""
        return [self.collator(list(samples[i : i + size])) for i in range(0, len(samples), size)]

    def samples_with_images(self, count: int) -> list[dict[str, Any]]:
        """``count`` samples with images, always the same: held-out ones, then training ones.

        A sample that broke since the check is left out, and the next one takes its place.

        Raises:
            RecordProblem: one of them broke, and broken records aren't dropped.
        """
        samples: list[dict[str, Any]] = []
        for data, report in ((self.eval, self.eval_report), (self.train, self.report)):
            if data is not None and report is not None:
                chosen = report.has_image.nonzero()[0]
                for i in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist():
                    if len(samples) == count:
                        break
                    try:
                        samples.append(data[int(chosen[i])])
                    except RecordProblem:
                        if not self.drops:
                            raise
        return samples


def prepare_data(
    recipe: Recipe,
    frontend: Frontend,
    *,
    say: Say,
    shown: bool = True,
    broken: Mapping[str, Sequence[int]] | None = None,
) -> Prepared:
    """Read and check all data of a recipe.

    Args:
        shown: count the records on a terminal.
        broken: what ``Prepared.summary`` says of the records dropped for a picture, when the run started; None: it
            starts now.

    Raises:
        UserError: a source can't be read, or records can't be used and the recipe says refuse.
    """
    section = recipe.data
    chat = ChatFormat.of(section.template, frontend)

    def checked(source: SourceSection | list[SourceSection], name: str) -> tuple[SupervisedDataset, DataReport]:
        records = load_records(source, root=Path.cwd(), key=name)
        for note in records.notes:
            say(f"{name}: {note}")
        report = check_data(
            records,
            chat,
            section,
            progress=counter(name) if shown else None,
            say=say,
            cache=cache_folder(),
            broken=None if broken is None else broken.get(name),
            pictures=section.held_out is not None,
            whole_list=Path(recipe.output) / f"{recipe.name}.{name}.problems.txt" if shown else None,
        )
        for line in report.summary():
            say(f"{name}: {line}")
        data = SupervisedDataset(
            records,
            chat,
            frontend.image_processor,
            section.image_fit,
            section.max_length,
            report.kept,
            section.jpeg_draft and name == TRAIN,
        )
        return data, report

    train, report = checked(section.train, TRAIN)
    held_out, eval_report = None, None
    if section.eval is not None:
        held_out, eval_report = checked(with_prompts_of_training(section.eval, section), EVAL)
    if section.held_out is not None:
        report, eval_report = hold_out(report, section.held_out, recipe.seed)
        held_out = replace(train, indices=eval_report.kept, jpeg_draft=False)
        train = replace(train, indices=report.kept)
        say(f"data.held_out: {len(held_out):,} of these records are kept for evaluation, {len(train):,} are trained on")
    sampler = GroupedSampler(
        report.lengths,
        report.has_image,
        global_batch=recipe.training.global_batch,
        mode=section.group_by,
        seed=recipe.seed,
    )
    collator = Collator(int(frontend.tokenizer.pad_token_id), section.padding_side)
    return Prepared(train, report, sampler, collator, held_out, eval_report, section.bad_records == "drop")


def _counts(report: DataReport) -> dict[str, Any]:
    return {
        "records": report.total,
        "used": len(report.kept),
        "with_images": int(report.has_image.sum()),
        "tokens": int(report.lengths.sum()),
        "supervised_tokens": int(report.supervised.sum()),
        "longest": int(report.lengths.max(initial=0)),
        "cut": int((report.cut > 0).sum()),
        "dropped": [str(problem) for problem in report.problems],
        BROKEN: report.broken,
    }
