"""The report's verdict on answers: the held-out score, and the same with another picture and without one."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.outside import CHANGED
from basic_lite.scoring.looking import Controls
from basic_lite.scoring.metrics.estimate import Estimate, estimate_of, percent
from basic_lite.scoring.metrics.named import METRICS
from basic_lite.sizes import number_of
from basic_lite.tools.report.charts import Chart, Line
from basic_lite.tools.score import NOT_KNOWN, NOT_TRAINED_ON, TRAINED_ON
from basic_lite.tools.summaries import summaries_of
from basic_lite.training.best_text import GENERATED, best_of
from basic_lite.training.data_json import UNKNOWN, known_before, met_before
from basic_lite.training.places import HELD_OUT

OWN, OTHER, NONE = "own picture", "another picture", "no picture"
_HELD_OUT = "held-out questions"
# The score to go by is the first of these that a summary has (see ``tools/score.py``), and what to add of it.
_KINDS = {NOT_TRAINED_ON: "", NOT_KNOWN: f", {UNKNOWN}", TRAINED_ON: ", trained on"}


@dataclass(frozen=True)
class Verdict:
    """What one evaluation found.

    Attributes:
        of: what it is of, in words; also what of it was trained on.
        held_out: it is of the run's own held-out questions.
        new: none of its questions is known to be trained on.
    """

    step: int
    metric: str
    score: Estimate
    controls: Controls | None
    of: str
    held_out: bool
    new: bool

    @property
    def title(self) -> str:
        """The metric's name for people."""
        return METRICS[self.metric].title if self.metric in METRICS else self.metric

    @property
    def count(self) -> str:
        """How many questions, and of what."""
        kind, named = self.of.split("questions", 1)
        return f"{number_of(self.score.n, f'{kind}question')}{named}"

    def cards(self) -> Iterator[tuple[str, str, str]]:
        """Title, value and note of each fact for the top of the page."""
        yield (
            "Held-out score" if self.held_out else "Score",
            _unbroken(percent(self.score)),
            f"{self.title}, {self.count}, step {self.step:,}",
        )
        if self.controls is not None:
            with_intervals, *found = self.controls.lines()
            # The score may be of those alone that weren't trained on.
            of = [f"of all {self.controls.own.n:,} questions"] if self.controls.own.n > self.score.n else []
            note = "; ".join([*found, with_intervals, *of])
            yield "Does it look at the picture?", _unbroken(_short(self.controls)), note


def _unbroken(text: str) -> str:
    """Large letters on a narrow card: a figure stays with its sign."""
    return text.replace(" %", "\u00a0%")


def _short(controls: Controls) -> str:
    """The three scores without their intervals, which stand in the note below."""
    ways = ((controls.own, ""), (controls.other, " with another picture"), (controls.none, " without one"))
    return "; ".join(f"{100 * one.share:.0f} %{how}" for one, how in ways if one is not None)


def verdict_of(run: Path, log: list[dict[str, Any]]) -> Verdict | None:
    """The evaluation that says most: not of what was trained on, of held-out questions, of the latest weights, of most.

    Args:
        log: what ``read_log`` finds rare in the run's.

    Returns:
        None: nobody has asked.
    """
    found = [*_logged(run, log), *_evaluated(run, log)]
    return max(found, key=lambda one: (one.new, one.held_out, one.step, one.score.n), default=None)


def _logged(run: Path, log: list[dict[str, Any]]) -> Iterator[Verdict]:
    """Those of ``training.eval_generate``."""
    of = f"{_HELD_OUT} ({known})" if (known := known_before(run)) else _HELD_OUT
    new = not met_before(run)
    for line in log:
        if (made_of := line.get(GENERATED)) is None or (score := estimate_of(made_of["score"])) is None:
            continue
        controls = Controls.from_json(made_of["controls"]) if "controls" in made_of else None
        yield Verdict(line["step"], made_of["metric"], score, controls, of, True, new)


def _evaluated(run: Path, log: list[dict[str, Any]]) -> Iterator[Verdict]:
    """Those of `basic-lite eval`. A summary that somebody changed is passed over."""
    for _, summary in summaries_of(run, log):
        with suppress(*CHANGED):
            settings = summary["settings"]
            # Data without reference answers has no score.
            kind = next((key for key in _KINDS if key in summary), None)
            if kind is None or (score := estimate_of(summary[kind])) is None:
                continue
            controls = Controls.from_json(summary["controls"]) if "controls" in summary else None
            held_out, metric = settings["data"] == HELD_OUT, str(summary["metric"])
            named = _HELD_OUT if held_out else f"questions of {Path(settings['data']).name}"
            new = kind != TRAINED_ON
            yield Verdict(int(settings["step"]), metric, score, controls, f"{named}{_KINDS[kind]}", held_out, new)


def score_charts(run: Path, log: list[dict[str, Any]]) -> Iterator[tuple[str, Chart]]:
    """The scores at each evaluation, with their intervals; nothing where no questions were asked."""
    found = {one.step: one for one in _logged(run, log)}
    if not found:
        return
    looks = [found[step] for step in sorted(found)]
    lines = [_line(OWN, [(one.step, one.score) for one in looks])]
    for name, part in ((OTHER, "other"), (NONE, "none")):
        values = [(one.step, getattr(one.controls, part)) for one in looks if one.controls is not None]
        lines.append(_line(name, [(step, value) for step, value in values if value is not None]))
    last = looks[-1]
    says = f"{last.title} on {last.count}; at step {last.step:,} {percent(last.score)}"
    if last.controls is not None:
        says += f". {last.controls.verdict()[:1].upper()}{last.controls.verdict()[1:]}"
    best = best_of(run, log)
    says += f". Best at step {best.step:,}." if best is not None and best.by != "loss" else "."
    yield "Held-out score", Chart(says, "step", last.title, lines)


def _line(name: str, values: list[tuple[int, Estimate]]) -> Line:
    points = [(float(step), one.share) for step, one in values if math.isfinite(one.share)]
    return Line(name, points, [one.interval for _, one in values], marks=True)
