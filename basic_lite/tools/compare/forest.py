"""Values with their intervals, one under the other, as SVG. Colours come from the page's style."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from basic_lite.printable import one_line
from basic_lite.resampling import Interval
from basic_lite.tools.report.charts import Scale

WIDTH, ROW, TOP, BOTTOM = 480, 30, 8, 36
LEFT, RIGHT = 130, 16
_MOST_OF_NAME = 18


@dataclass(frozen=True)
class Forest:
    """Rows of a name and an interval.

    Attributes:
        says: what it shows, for a reader who can't see it.
        x: what is measured.
        zero: the line of no difference is drawn, and the axis holds it.
    """

    says: str
    x: str
    rows: Sequence[tuple[str, Interval]]
    zero: bool = False

    def svg(self) -> str:
        """The drawing."""
        ends = [end for _, one in self.rows for end in one] + [0.0] * self.zero
        low, high = min(ends), max(ends)
        margin = 0.06 * (high - low) or 0.05
        scale = Scale(low - margin, high + margin)

        def at(value: float) -> float:
            return LEFT + scale.at(value) * (WIDTH - LEFT - RIGHT)

        bottom = TOP + ROW * len(self.rows)
        parts = []
        for value in scale.ticks(5):
            x = at(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.3g}</text>')
        if self.zero:
            parts.append(f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
        for number, (name, one) in enumerate(self.rows):
            y, label = TOP + ROW * (number + 0.5), escape(one_line(name, _MOST_OF_NAME))
            parts.append(
                f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
                f'<line class="line c0" x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<circle class="dot c0" cx="{at(one.value):.1f}" cy="{y:.1f}" r="4"/>'
            )
        parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(self.x)}</text>')
        label = escape(self.says, quote=True)
        return f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
