"""The plot of the bench: peak memory and time of each operation over images per batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from basic_lite.sizes import MIB
from bench.rows import Row


def plot_rows(rows: Iterable[Row], title: str, path: Path) -> None:
    """Peak memory and time over images per batch: a row of panels for each operation, at its first table size."""
    timed = [row for row in rows if row.p50_ms is not None]
    operations = list(dict.fromkeys(row.operation for row in timed))
    if not operations:
        return
    figure = Figure(figsize=(9.5, 3.1 * len(operations) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"BASIC operations, one step, on {title}", fontsize=12)
    colour = {who: f"C{i % 10}" for i, who in enumerate(dict.fromkeys(row.who for row in timed))}  # the same in each
    for operation, panels in zip(operations, figure.subplots(len(operations), 2, squeeze=False), strict=True):
        mine = [row for row in timed if row.operation == operation]
        # Shapes that differ in more than the number of images ("4 images · D 4096"): the first kind is drawn.
        kind = mine[0].shape.split(" · ", 1)[1]
        mine = [row for row in mine if row.shape.endswith(kind)]
        for who in dict.fromkeys(row.who for row in mine):
            line = sorted((row for row in mine if row.who == who), key=lambda row: row.images)
            images = [row.images for row in line]
            style = "o--" if who.startswith("naive") else "o-"
            for axes, values in zip(panels, _values(line), strict=True):
                axes.plot(images, values, style, color=colour[who], markersize=4.5, label=who)
            spread = [row.p20_ms or 0.0 for row in line], [row.p80_ms or 0.0 for row in line]
            panels[1].fill_between(images, *spread, color=colour[who], alpha=0.18, linewidth=0)
        for axes, what in zip(panels, ("peak extra memory, MiB", "time, ms (p20 to p80 shaded)"), strict=True):
            axes.set(title=f"{operation}: {kind}", xlabel="images per batch", ylabel=what, xscale="log", yscale="log")
            counts = sorted({row.images for row in mine})
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.set_xticks([], minor=True)
            axes.title.set_fontsize(9)
            axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _values(line: list[Row]) -> tuple[list[float], list[float]]:
    return [(row.peak_bytes or 0) / MIB for row in line], [row.p50_ms or 0.0 for row in line]
