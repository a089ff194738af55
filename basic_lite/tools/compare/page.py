"""The page of a comparison: one file that a browser opens without a network."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from basic_lite.tools.compare.comparison import Comparison, remarks
from basic_lite.tools.compare.forest import Forest
from basic_lite.tools.report.charts import Chart, Line, smoothed
from basic_lite.tools.report.html import fill, mark_of

# Questions shown of those that one side has right and the other wrong.
MOST_SHOWN = 20
# The style has so many colours.
MOST_LINES = 4
COMMAND = "compare"


def render(found: Comparison) -> str:
    """The page's text."""
    names = [side.name for side in found.sides]
    return fill(
        "basic_lite.tools.compare",
        "compare.html.j2",
        mark=mark_of(COMMAND),
        found=found,
        names=names,
        scores=list(zip(found.sides, found.scores, strict=True)),
        against=list(zip(names[1:], found.against, strict=True)),
        plots=list(_plots(found, names)),
        losses=[(one, list(zip(names, one.last, strict=True))) for one in found.losses],
        loss_charts=[(one.name, _loss_chart(found, number)) for number, one in enumerate(found.losses)],
        apart=list(_apart(found, names)),
        remarks=list(remarks(found)),
    )


def _plots(found: Comparison, names: Sequence[str]) -> Iterator[tuple[str, Forest]]:
    scores = list(zip(names, found.scores, strict=True))
    says = "; ".join(f"{name} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in scores)
    yield "Scores", Forest(f"Scores with their 95 % intervals: {says}.", "score", scores)
    gains = [(name, one.gain) for name, one in zip(names[1:], found.against, strict=True)]
    says = "; ".join(f"{name} {gain.text}" for name, gain in gains)
    title = f"Against {names[0]}"
    yield title, Forest(f"Scores minus that of {names[0]}: {says}.", "difference of scores", gains, zero=True)


def _loss_chart(found: Comparison, number: int) -> Chart:
    losses = found.losses[number]
    over = max(1, len(losses.steps) // 50)
    lines = [
        Line(side.name, smoothed(list(zip(losses.steps, values, strict=True)), over), marks=len(losses.steps) < 30)
        for side, values in list(zip(found.sides, losses.values, strict=True))[:MOST_LINES]
    ]
    ends = "; ".join(f"{side.name} {value:.3f}" for side, value in zip(found.sides, losses.last, strict=True))
    mean = f", mean of {over} logged steps" if over > 1 else ""
    return Chart(f"{losses.name} by step{mean}; at the end: {ends}.", "step", "nats a token", lines)


def _apart(found: Comparison, names: Sequence[str]) -> Iterator[tuple[str, int, list[list[Mapping[str, Any]]]]]:
    """For each pair of the first side and another: questions that one has right and the other wrong."""
    for other in range(1, len(names)):
        for better, worse in ((other, 0), (0, other)):
            places = np.flatnonzero((found.right[better] >= 0.5) & (found.right[worse] < 0.5))
            rows = [[found.rows[at][better], found.rows[at][worse]] for at in places[:MOST_SHOWN]]
            yield f"{names[better]} right, {names[worse]} wrong", len(places), rows
