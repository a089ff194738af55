"""The plot of the bench: peak memory and time of each operation over images per batch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from basic_lite.units import MIB
from bench.rows import NAIVE, Row

# One colour for each of who computes, in every panel; a light and a dark grey for what is there anyway.
COLOURS = {
    "triton": "#0072B2",
    "triton fused": "#56B4E9",
    "reference": "#009E73",
    NAIVE: "#555555",
    "naive autocast bf16": "#999999",
    "torch.compile": "#E69F00",
}
OTHER_COLOURS = ("#D55E00", "#CC79A7", "#F0E442")


def plot_rows(rows: Iterable[Row], title: str, path: Path) -> None:
    """Peak memory and time over images per batch: a row of panels for each operation, at its first table size."""
    timed = [row for row in rows if row.p50_ms is not None]
    operations = list(dict.fromkeys(row.operation for row in timed))
    if not operations:
        return
    figure = Figure(figsize=(9.5, 3.1 * len(operations) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"BASIC operations, one step, on {title}", fontsize=12)
    panels = figure.subplots(len(operations), 2, squeeze=False)
    others = iter(OTHER_COLOURS * 4)
    colour = {who: COLOURS.get(who) or next(others) for who in dict.fromkeys(row.who for row in timed)}
    for operation, (memory, duration) in zip(operations, panels, strict=True):
        mine = [row for row in timed if row.operation == operation]
        # Shapes that differ in more than the number of images: the first kind is drawn.
        kind = _kind(mine[0].shape)
        mine = [row for row in mine if _kind(row.shape) == kind]
        images = sorted({row.images for row in mine})
        for who in dict.fromkeys(row.who for row in mine):
            line = sorted((row for row in mine if row.who == who), key=lambda row: row.images)
            x = [row.images for row in line]
            style: dict[str, Any] = {"color": colour[who], "marker": "o", "markersize": 4.5, "label": who, "zorder": 3}
            if who.startswith("naive"):
                style |= {"linestyle": "--", "zorder": 2}
            memory.plot(x, [(row.peak_bytes or 0) / MIB for row in line], **style)
            duration.plot(x, [row.p50_ms or 0.0 for row in line], **style)
            duration.fill_between(
                x, [row.p20_ms or 0.0 for row in line], [row.p80_ms or 0.0 for row in line],
                color=colour[who], alpha=0.18, linewidth=0,
            )  # fmt: skip
        memory.set_ylabel("peak extra memory, MiB")
        duration.set_ylabel("time, ms (p20 to p80 shaded)")
        for axes in (memory, duration):
            axes.set_title(f"{operation}: {kind}", fontsize=9)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(images))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(partial(_minor_label, axes)))
            axes.tick_params(axis="y", which="minor", labelsize=7)
            axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel("images per batch")
        memory.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _minor_label(axes: Any, value: float, _: int | None) -> str:
    """Where less than two decades are shown, 2 and 5 between the powers of ten are named too."""
    low, high = axes.get_ylim()
    leading = f"{value:.0e}"[0]
    return f"{value:g}" if high / low < 200 and leading in "25" else ""


def _kind(shape: str) -> str:
    """A shape's label without its number of images: "4 images · D 4096" → "D 4096"."""
    return shape.split(" · ", 1)[1]
