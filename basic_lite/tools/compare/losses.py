"""Losses of runs at the same steps, from their logs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from basic_lite.data.names import HELD_OUT, HELD_OUT_PICTURES
from basic_lite.outside import as_object, is_finite
from basic_lite.training.log_lines import ReadLog, damaged_text, read_log
from basic_lite.training.places import DATA, LOG, read_json

# Of the steps that all have, the last tenth is averaged: one step's loss is of few samples.
LAST = 0.1
# Of each: whose data it is of in data.json, what it is called, its name in the log.
_LOSSES = (("train", "training loss", "lm"), ("eval", "held-out loss", "eval_loss"))


@dataclass(frozen=True)
class Losses:
    """Losses of groups of runs at steps that all of them have.

    Attributes:
        name: of the loss.
        steps: that all runs logged it at.
        values: for each group, the mean of its runs at each step.
    """

    name: str
    steps: list[int]
    values: list[list[float]]

    @property
    def counted(self) -> int:
        """Steps at the end that ``last`` averages."""
        return max(1, round(LAST * len(self.steps)))

    @property
    def last(self) -> list[float]:
        """Each group's mean over the last steps."""
        return [fmean(values[-self.counted :]) for values in self.values]


def losses_of(groups: Sequence[Sequence[Path]]) -> tuple[list[Losses], list[str]]:
    """Losses at the steps that all runs have, of training and of held-out data, each where their data is alike.

    Args:
        groups: places of runs; a place that is no folder has none.

    Returns:
        The losses, and remarks on what of the runs' logs is left out of them.
    """
    runs = [run for group in groups for run in group]
    if not all((run / LOG).is_file() for run in runs):
        return [], []
    alike = [(name, loss) for key, name, loss in _LOSSES if _all_alike([_data_of(run, key) for run in runs])]
    logs = {run: read_log(run) for run in runs} if alike else {}
    found = [_common(name, loss, [[logs[run] for run in group] for group in groups]) for name, loss in alike]
    found = [one for one in found if one.steps]
    damaged = [f"{run}: {damaged_text(log.damaged)}" for run, log in logs.items() if log.damaged]
    no_number = [_no_number(run, log, name, key) for name, key in alike for run, log in logs.items()]
    return found, [*(damaged if found else []), *filter(None, no_number)]


def _no_number(run: Path, log: ReadLog, name: str, key: str) -> str:
    """The steps at which a loss is no number, in words; nothing where it is one. A run that broke down has some."""
    steps = [line["step"] for line in log.rare if key in line and not is_finite(line[key])]
    which = (
        f"step {steps[0]:,}" if len(steps) == 1 else f"{len(steps):,} steps, the last of them {max(steps, default=0):,}"
    )
    return f"{run}: its {name} is no number at {which}; that is left out" if steps else ""


def _common(name: str, key: str, groups: Sequence[Sequence[ReadLog]]) -> Losses:
    logs = [[_series(log, key) for log in group] for group in groups]
    steps = sorted(set.intersection(*(set(log) for group in logs for log in group)))
    return Losses(name, steps, [[fmean(log[step] for log in group) for step in steps] for group in logs])


def _series(log: ReadLog, key: str) -> dict[int, float]:
    """Finite values by step; of a step that was made twice, the later."""
    few = {line["step"]: float(line[key]) for line in log.rare if is_finite(line.get(key))}
    return dict(log.series[key]) if key in log.series else few


def _all_alike(facts: Sequence[object]) -> bool:
    return facts[0] is not None and all(one == facts[0] for one in facts)


def _data_of(run: Path, part: str) -> tuple[object, ...] | None:
    """What tells one run's data from another's: counts, and of data.held_out which records and pictures."""
    counts = as_object(read_json(run / DATA)).get(part)
    if not isinstance(counts, dict):
        return None
    return tuple(
        counts.get(key) for key in ("used", "tokens", "supervised_tokens", "longest", HELD_OUT, HELD_OUT_PICTURES)
    )
