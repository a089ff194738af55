"""The lines of a run's ``log.jsonl``, as everything reads them. No torch is needed here.

A line is whole if it has a step, and if all in it that is read anywhere is as a run writes it. What isn't whole is
passed over and counted: a person may have changed it, or a full disk cut it off.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from basic_lite.outside import CHANGED, is_finite
from basic_lite.scoring.looking import Controls
from basic_lite.scoring.metrics.estimate import estimate_of
from basic_lite.training.manifest import Count
from basic_lite.training.places import LOG, json_lines
from basic_lite.training.points import Points
from basic_lite.training.text_probe.outcome import outcome_from

# What few lines have: those of evaluations, looks, answers, lost records, measured time and the end.
RARE = {"eval_loss", "eval_score", "refinement", "gate", "answers", "dropped", "time", "generated", "text_probe"}
# A run computes its numbers in float32, so none is near to this; it may be infinite or no number.
LARGEST = 1e100


def _computed(value: float) -> float:
    if math.isfinite(value) and abs(value) > LARGEST:
        raise ValueError("no run computes so large a number")
    return value


def _generated(value: Any) -> Any:
    """Answers to held-out questions, scored (``held_out_score.py``)."""
    try:
        estimate_of(value["score"])
        if "controls" in value:
            Controls.from_json(value["controls"])
        scores = [float(one) for one in value.get("scores", [])]
        if not isinstance(value["metric"], str) or not all(0 <= one <= 1 for one in scores):
            raise ValueError("no scores")
    except CHANGED as error:
        raise ValueError(str(error)) from None
    return value


def _probed(value: Any) -> Any:
    try:
        outcome_from(value)
    except CHANGED as error:
        raise ValueError(str(error)) from None
    return value


Number = Annotated[float, AfterValidator(_computed)]
# Of seconds and GiB; of either this is more than there is.
Amount = Annotated[float, Field(ge=0, le=1e9)]
Gain = Annotated[list[Number], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Health(_Part):
    model_config = ConfigDict(strict=True, extra="forbid")
    first_norm: list[Number]
    other_norm: list[Number]
    largest_share: list[Number]
    largest_dimension: list[Count]
    sink_share: list[Number]
    pairwise_cos: list[Number]
    cos_v: list[Number]


class _Curve(_Part):
    """A refinement curve. Those of older versions have neither ``gains`` nor ``health``."""

    places: Annotated[list[str], Field(min_length=2)]
    own: list[Number]
    control: list[Number] | None
    samples: Count
    patches: Count
    gains: list[Gain] = []
    health: _Health | None = None

    @model_validator(mode="after")
    def _of_one_length(self) -> "_Curve":
        health = [] if self.health is None else [value for _, value in self.health]
        each = [self.own, *([] if self.control is None else [self.control]), *health]
        if any(len(one) != len(self.places) for one in each) or len(self.gains) not in (0, len(self.places) - 1):
            raise ValueError("it has not one value for each place")
        return self


class _Look(_Part):
    """What the gate found; without ``open`` it only chose the target."""

    open: bool | None = None
    verdict: str = ""
    gain: Gain | None = None
    gain_again: Gain | None = None
    loss_change: Gain | None = None
    samples: Count = 0

    @model_validator(mode="after")
    def _says_all(self) -> "_Look":
        if self.open is not None and not {"verdict", "gain", "samples"} <= self.model_fields_set:
            raise ValueError("it doesn't say on what")
        return self


class _Answer(_Part):
    picture: str = ""
    question: str = ""
    answer: str = ""
    reference: str = ""
    number: Count = 0


class _Time(_Part):
    first: Count = 0
    whole_s: Amount = 0.0
    step_s: Amount = 0.0
    parts_s: dict[str, Amount] = {}
    saving_s: Amount = 0.0
    evaluating_s: Amount = 0.0
    answering_s: Amount = 0.0


class _Line(_Part):
    """Names that nothing reads may stand for anything."""

    step: Count
    loss: Number = 0.0
    lm: Number = 0.0
    das: Number = 0.0
    sds: Number = 0.0
    cos: Number = 0.0
    pairwise_cos: Number = 0.0
    norm_to_vocabulary: Number = 0.0
    tokens_per_s: Number = 0.0
    step_s: Amount = 0.0
    peak_memory_gib: Amount = 0.0
    epoch: Number = 0.0
    eval_loss: Number = 0.0
    eval_score: Number = 0.0
    refinement: _Curve | None = None
    gate: _Look | None = None
    answers: list[_Answer] = []
    dropped: list[str] = []
    time: _Time | None = None
    generated: Annotated[Any, AfterValidator(_generated)] = None
    text_probe: Annotated[Any, AfterValidator(_probed)] = None


# What most lines have.
_USUAL = _Line.model_fields.keys() - RARE - {"step"}


@dataclass(frozen=True)
class ReadLog:
    """What a log holds. A run reads its own at each evaluation, so a step takes some 200 bytes, and no dict (2 kB).

    Attributes:
        rare: whole lines that have more than a step's numbers, in order; the newest line too, whatever it has.
        series: by name, the finite numbers that any whole line may have, with their steps, in order.
        damaged: lines that aren't whole.
    """

    rare: list[dict[str, Any]]
    series: Mapping[str, Points]
    damaged: int


def damaged_text(count: int) -> str:
    """How many lines of a log aren't whole, in words; nothing where all are."""
    some = f"{count:,} lines of {LOG} are" if count > 1 else f"1 line of {LOG} is"
    return f"{some} damaged and left out" if count else ""


def read_log(run: Path) -> ReadLog:
    """The log of a run folder; one that isn't there has no lines."""
    rare, damaged, newest = list[dict[str, Any]](), 0, dict[str, Any]()
    series = {name: Points() for name in _USUAL}
    for line in _checked(run / LOG, 0) if (run / LOG).is_file() else ():
        if line is None:
            damaged += 1
            continue
        for name in _USUAL & line.keys():
            if is_finite(line[name]):
                series[name].add(line["step"], float(line[name]))
        if line.keys() & RARE:
            rare.append(line)
        if line["step"] >= newest.get("step", 0):
            newest = line
    if newest and not any(line is newest for line in rare):
        rare.append(newest)
    return ReadLog(rare, series, damaged)


def lines_of(run: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run folder's log, one after the other; one that isn't there has none."""
    return whole_lines(run / LOG) if (run / LOG).is_file() else iter(())


def whole_lines(path: Path, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """The whole lines of a log file.

    Args:
        after: bytes of the file that are passed over.
    """
    return (line for line in _checked(path, after) if line is not None)


def is_whole(line: Any) -> bool:
    """Whether a line is as a run writes it."""
    try:
        _Line.model_validate(line)
    except ValidationError:
        return False
    return isinstance(line, dict)


def _checked(path: Path, after: int) -> Iterator[dict[str, Any] | None]:
    """Each line; None: it isn't whole, or its curve has other places than the first, which another model has."""
    places = None
    for line in json_lines(path, after=after):
        if not is_whole(line):
            yield None
            continue
        own = (line.get("refinement") or {}).get("places")
        places = places or own
        yield line if own in (None, places) else None
