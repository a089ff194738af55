"""A part of the training records kept for evaluation: `data.held_out`."""

from dataclasses import replace

import numpy as np

from basic_lite.data.check import DataReport
from basic_lite.data.groups import first_of, join
from basic_lite.errors import UserError

# Draws from the recipe's seed, apart from everything else that is drawn from it.
_STREAM = 0x68656C64


def hold_out(report: DataReport, share: float, seed: int) -> tuple[DataReport, DataReport]:
    """Split a report in two: what is trained on, and what is kept for evaluation.

    Whole pictures are drawn: records that share one, also by way of a third record, go to the same side. Each side has
    at least one record; the second one has at most ``share`` of them where pictures allow it.

    Args:
        report: with ``pictures``.

    Raises:
        UserError: all records hang together by their pictures.
    """
    import torch

    from basic_lite.data.sampler import generator_of

    assert report.pictures is not None
    groups = _groups(report.pictures)
    if len(groups) < 2:
        raise UserError(
            "data.held_out: every record of data.train has the same picture, so none can be held out that training "
            "doesn't see; remove data.held_out, or name other data in data.eval"
        )
    order = torch.randperm(len(groups), generator=generator_of(seed, _STREAM)).tolist()
    most = max(1, round(share * len(report.kept)))
    chosen: list[int] = []
    for number in order:
        if len(chosen) + len(groups[number]) <= most:
            chosen += groups[number]
    held = np.zeros(len(report.kept), dtype=bool)
    held[chosen or min(groups, key=len)] = True
    return report.only(~held), replace(report.only(held), problems=[], broken=[])


def can_hold_out(report: DataReport) -> bool:
    """Whether there are records that don't hang together by their pictures."""
    return report.pictures is not None and len(_groups(report.pictures)) > 1


def _groups(pictures: list[tuple[int, ...]]) -> list[list[int]]:
    """Positions of records that hang together by their pictures, in the order of their first records."""
    parents = list(range(len(pictures)))
    first: dict[int, int] = {}
    for place, keys in enumerate(pictures):
        for key in keys:
            join(parents, place, first.setdefault(key, place))
    groups: dict[int, list[int]] = {}
    for place in range(len(pictures)):
        groups.setdefault(first_of(parents, place), []).append(place)
    return list(groups.values())
