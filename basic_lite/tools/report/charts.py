"""Line charts as SVG, made here: a report needs no network and no script. Colours come from the page's style."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from basic_lite.training.points import Points

WIDTH, HEIGHT = 480, 236
# On the left: six characters of the widest common font, and the name of what is drawn beside them.
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 12, 46
# Beyond it differences and powers of numbers would be infinite. Nothing that is measured is so large.
FAR = 1e100
# A longer line is thinned: more points than pixels show nothing.
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: (x, y).
        bars: (low, high) around each y; none: no interval.
        marks: each point has a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    bars: Sequence[tuple[float, float] | None] = ()
    marks: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart with what a reader hears who can't see it.

    Attributes:
        says: what it shows, in a sentence.
        x_names: names of x = 0, 1, 2 … in place of numbers.
        log_y: a logarithmic scale.
    """

    says: str
    x: str
    y: str
    lines: Sequence[Line]
    x_names: Sequence[str] = ()
    log_y: bool = False

    def svg(self) -> str:
        """The drawing, without points that aren't finite, are beyond ``FAR``, or not above 0 on a logarithmic scale."""
        lines = [_drawable(line, log_y=self.log_y) for line in self.lines]
        lines = [line for line in lines if line.points]
        if not lines:
            return ""
        places = {x for line in lines for x, _ in line.points}
        heights = [y for line in lines for _, y in line.points]
        heights += [end for line in lines for bar in line.bars if bar is not None for end in bar]
        across, up = Scale.of(list(places)), Scale.of(heights, log=self.log_y)
        if len(places) == 1:  # nothing leads to the points, so they don't stand on the edge
            room = 0.15 * (up.high - up.low)
            up = Scale(up.low - room, up.high + room, up.log)
        parts = [*self._grid(across, up, places)]
        for number, line in enumerate(lines):
            parts += _draw(line, number, across, up)
        body = "".join(parts)
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.says, quote=True)}">{body}</svg>'
        )

    def legend(self) -> list[tuple[int, str]]:
        """Number of its colour and name, of each line that is drawn."""
        drawn = [line for line in self.lines if _drawable(line, log_y=self.log_y).points]
        return [(number, line.name) for number, line in enumerate(drawn)]

    def _grid(self, across: "Scale", up: "Scale", places: set[float]) -> list[str]:
        bottom, parts = HEIGHT - BOTTOM, []
        for value in up.ticks(4):
            y = _y(up, value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        named: list[tuple[float, str]] = [(value, name) for value, name in enumerate(self.x_names)]
        # Where all points are at one place, that is all there is to say of the axis.
        named = named or [(value, _short(value)) for value in (across.ticks(5) if len(places) > 1 else places)]
        few = max(1, math.ceil(len(named) / 12))
        for number, (value, name) in enumerate(named):
            left = len(named) - 1 - number  # the last one has its name, and those beside it have none
            if left == 0 or (number % few == 0 and left >= few):
                x = _x(across, value)
                parts.append(f'<text x="{x:.1f}" y="{bottom + 21}" text-anchor="middle">{escape(str(name))}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x)}</text>')
        across_y = (TOP + bottom) / 2
        parts.append(
            f'<text x="12" y="{across_y}" text-anchor="middle" transform="rotate(-90 12 {across_y})">'
            f"{escape(self.y)}</text>"
        )
        return parts


@dataclass(frozen=True)
class Scale:
    """Values to 0 … 1."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], *, log: bool = False) -> "Scale":
        low, high = min(values), max(values)
        if log:
            return cls(math.log10(low), max(math.log10(high), math.log10(low) + 1e-6), log=True)
        if high - low < 1e-300:  # in the middle
            return cls(low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))
        return cls(low, high)

    def at(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        if self.log:
            step = (self.high - self.low) / count
            return [10 ** (self.low + step * i) for i in range(count + 1)]
        rough = (self.high - self.low) / count
        unit = 10 ** math.floor(math.log10(rough))
        step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda one: abs(one - rough))
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def smoothed(points: Sequence[tuple[int, float]], over: int) -> Sequence[tuple[int, float]]:
    """The mean of each point and the up to ``over`` − 1 before it."""
    values = np.fromiter((y for _, y in points), np.float64, len(points))
    means = array("d", (values[:end].mean() for end in range(1, min(over, len(values) + 1))))
    if len(values) >= over:
        means.frombytes(sliding_window_view(values, over).mean(axis=1).tobytes())
    found = Points()
    for (x, _), mean in zip(points, means, strict=True):
        found.add(x, mean)
    return found


def _drawable(line: Line, *, log_y: bool) -> Line:
    # Places in the line, and no pairs: a long line has many.
    found = array("q", (i for i, (_, y) in enumerate(line.points) if _has_place(y, log_y=log_y)))
    kept = list(dict.fromkeys([*found[:: math.ceil(len(found) / MOST_POINTS) or 1], *found[-1:]]))
    bars = [_whole(line.bars[i] if line.bars else None, log_y=log_y) for i in kept]
    return Line(line.name, [line.points[i] for i in kept], bars, line.marks)


def _whole(bar: tuple[float, float] | None, *, log_y: bool) -> tuple[float, float] | None:
    return bar if bar is not None and all(_has_place(end, log_y=log_y) for end in bar) else None


def _has_place(value: float, *, log_y: bool) -> bool:
    return abs(value) < FAR and (value > 0 or not log_y)


def _draw(line: Line, number: int, across: Scale, up: Scale) -> list[str]:
    places = [(_x(across, x), _y(up, y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line c{number}" points="{path}"/>']
    for (x, y), bar in zip(places, line.bars, strict=True):
        if bar is not None:
            low, high = (_y(up, end) for end in bar)
            parts.append(f'<line class="line c{number}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if line.marks or len(places) == 1:
            parts.append(f'<circle class="dot c{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return parts


def _x(scale: Scale, value: float) -> float:
    return LEFT + scale.at(value) * (WIDTH - LEFT - RIGHT)


def _y(scale: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.at(value) * (HEIGHT - TOP - BOTTOM)


def _short(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
