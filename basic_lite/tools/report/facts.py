"""What a run's folder says of the run, read for its report. Files are read; no model is loaded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.outside import CHANGED, as_object, read_text
from basic_lite.sizes import number_of
from basic_lite.supervision import RefinementCurve
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.runs import RunRow, recipe_of, row_of
from basic_lite.training.bundle_files import require_run
from basic_lite.training.log_lines import read_log
from basic_lite.training.look_lines import GateLook, looks_in
from basic_lite.training.places import (
    DATA,
    LOG,
    MANIFEST,
    MAPS,
    RECIPE_YAML,
    SAMPLES,
    is_finished,
    newest_first,
    read_json,
)
from basic_lite.training.software import read_software
from basic_lite.training.time_use import ANSWERING, EVALUATING, SAVING

_ANSWERED = ("picture", "question", "answer", "reference", "number")
_THUMBNAIL = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*")
# Patches with token maps, so that a page stays small: 24 × 24 of them take 0.3 MB.
MOST_PATCHES = 4000
# Values of one name: (step, value).
Series = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Shown:
    """A held-out question with the answers before and after training.

    Attributes:
        thumbnail: a data URI; empty: there is no picture of it.
        before: None: nobody asked.
    """

    picture: str
    thumbnail: str
    question: str
    reference: str
    before: str | None
    after: str

    @property
    def right(self) -> bool:
        """Whether the answer is the reference, small and capital letters and spaces aside."""
        return self.after.casefold().split() == self.reference.casefold().split()


@dataclass(frozen=True)
class WholeTime:
    """How long a run took.

    Attributes:
        seconds: of all of it; where it was continued, of what came before the steps alone.
        steps_s: of its steps, without saving, evaluating and answering.
        first: steps done before it was continued for the last time; 0: it never was.
    """

    seconds: float
    steps_s: float
    first: int


@dataclass(frozen=True)
class ShownMaps:
    """Token maps of a few pictures.

    Attributes:
        step: steps that were done when they were measured.
        held_out: the pictures were held out; else the run trains on them.
    """

    step: int
    held_out: bool
    pictures: list[PictureMaps]


@dataclass(frozen=True)
class RunFacts:
    """Everything that a report shows.

    Attributes:
        gated: BASIC is on where its premise is found to hold.
        log: its lines that have more than a step's numbers, and the newest.
        series: by the name of a number, the steps at which it is logged and finite, and its values.
        damaged: how many lines of the log aren't whole.
    """

    path: Path
    row: RunRow
    manifest: dict[str, Any]
    recipe: str
    gated: bool
    log: list[dict[str, Any]]
    series: Mapping[str, Series]
    damaged: int
    curves: list[tuple[int, RefinementCurve]]
    looks: list[GateLook]
    answers: list[Shown]
    maps: ShownMaps | None
    data: dict[str, Any]
    software: list[dict[str, Any]]

    @property
    def state(self) -> str:
        """How far it had come when the page was written. A run that ends without a page makes no page untrue."""
        step, total = max(line["step"] for line in self.log), self.manifest.get("total_steps")
        if is_finished(self.path):
            return f"finished, {number_of(step, 'step')}"
        return (
            f"at step {step:,}" + (f" of {total:,}" if isinstance(total, int) else "") + " when this page was written"
        )

    @property
    def time_parts(self) -> list[tuple[str, float]]:
        """Parts of a step's time and their seconds, the longest first, as they were last measured."""
        found: dict[str, float] = {}
        for line in _with(self.log, "time"):
            found = line["time"].get("parts_s", found)
        return sorted(found.items(), key=lambda part: -part[1])

    @property
    def held_out(self) -> Series:
        """Steps that were evaluated, with their held-out loss; one may be no number."""
        return [(line["step"], float(line["eval_loss"])) for line in self.log if "eval_loss" in line]

    @property
    def whole_time(self) -> WholeTime | None:
        """How long the run took; None: no part of it has ended yet, or an older version made it."""
        ends = [line["time"] for line in _with(self.log, "time") if "whole_s" in line["time"]]
        if not ends or self.train_seconds is None:
            return None
        own, first = ends[-1]["whole_s"], ends[-1].get("first", 0)
        apart = sum(ends[-1].get(f"{what}_s", 0.0) for what in (SAVING, EVALUATING, ANSWERING))
        before = self._seconds_until(first)
        return WholeTime(own + before, max(own - apart, 0.0) + before, first)

    def _seconds_until(self, step: int) -> float:
        """Of the steps up to one, from those of them that are logged."""
        timed = [seconds for at, seconds in self.series["step_s"] if at <= step]
        return sum(timed) / len(timed) * step if timed else 0.0

    @property
    def holds_out(self) -> bool:
        """Whether data was held out; where its counts are lost, whether it was evaluated."""
        return bool(self.held_out) or isinstance(self.data.get("eval"), dict)

    @property
    def steps_with_basic(self) -> int | None:
        """Logged steps that had BASIC, of those that are logged; None: no step is logged."""
        return len(self.series["das"]) if self.series["lm"] else None

    @property
    def train_seconds(self) -> float | None:
        """Of all steps, from those that are logged; None: none is."""
        timed = self.series["step_s"]
        return self._seconds_until(timed[-1][0]) if timed else None


def read_run(run: Path) -> RunFacts:
    """Read a run's folder.

    Raises:
        UserError: it is no run, or has no log yet.
    """
    require_run(run)
    read = read_log(run)
    log = read.rare
    if not log:
        raise UserError(f"{run} has no {LOG} yet, so there is nothing to report; train it first")
    bundles = newest_first(run)
    supervision = as_object(recipe_of(run, bundles).get("supervision"))
    try:
        recipe = read_text(run / RECIPE_YAML)
    except (OSError, UnicodeDecodeError):
        recipe = ""
    return RunFacts(
        run,
        row_of(run, read),
        as_object(read_json(bundles[0] / MANIFEST)) if bundles else {},
        recipe,
        supervision.get("enabled") is True and supervision.get("gate") is True,
        log,
        read.series,
        read.damaged,
        _curves(log),
        looks_in(log),
        _answers(log, read_json(run / SAMPLES)),
        _maps(read_json(run / MAPS)),
        as_object(read_json(run / DATA)),
        read_software(run),
    )


def _curves(log: Sequence[dict[str, Any]]) -> list[tuple[int, RefinementCurve]]:
    """Curves that have scores, the later of two at one step."""
    found = {line["step"]: RefinementCurve.from_dict(line["refinement"]) for line in _with(log, "refinement")}
    return [(step, curve) for step, curve in found.items() if curve.score is not None]


def _answers(log: Sequence[dict[str, Any]], thumbnails: Any) -> list[Shown]:
    """The last answers, each with the first that was given to the same question."""
    asked = [
        [{key: str(one.get(key, "")) for key in _ANSWERED} for one in line["answers"]] for line in _with(log, "answers")
    ]
    if not asked:
        return []
    first = {_question(one): one["answer"] for one in asked[0]} if len(asked) > 1 else {}
    own = thumbnails.items() if isinstance(thumbnails, dict) else ()
    pictures = {name: data for name, data in own if isinstance(data, str) and _THUMBNAIL.fullmatch(data)}
    return [
        Shown(
            one["picture"],
            pictures.get(one["number"], ""),
            one["question"],
            one["reference"],
            first.get(_question(one)),
            one["answer"],
        )
        for one in asked[-1]
    ]


def _maps(kept: Any) -> ShownMaps | None:
    """None: there are none, or somebody changed them."""
    with suppress(*CHANGED):
        pictures = [PictureMaps.of(one) for one in kept["pictures"]]
        patches = accumulate(one.tokens for one in pictures)
        shown = [one for one, count in zip(pictures, patches, strict=True) if count <= MOST_PATCHES]
        if len({len(one.trace) for one in shown}) == 1:  # they are of one model, and one chart has all
            return ShownMaps(int(kept["step"]), bool(kept["held_out"]), shown)
    return None


def _with(log: Sequence[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The lines that have something of that name: few of a long run's."""
    return (line for line in log if line.get(name) is not None)


def _question(answered: dict[str, str]) -> tuple[str, ...]:
    return tuple(answered[key] for key in _ANSWERED if key != "answer")
