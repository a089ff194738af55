"""What a run of the bench found: rows, gates, a table a person can read, one JSON, one plot."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basic_lite.units import MIB
from bench import measure

NAIVE = "naive eager"

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


@dataclass(frozen=True)
class Case:
    """One operation on one shape, and what is counted of it.

    Args:
        operation: its name.
        shape: label, in the symbols of the bench file.
        images: images in the batch, the axis of the plot.
        elements: what peak memory is divided by; ``unit`` names it ("M·D").
        moved_bytes, flops: the least that any implementation moves and multiplies.
        floor: which of the two bounds the time: "copy" or "gemm".
        tolerance: how much ours may err beyond naive eager code of the same types, relative.
        seconds: how long each contender is timed on a CPU.
    """

    operation: str
    shape: str
    images: int
    elements: float
    unit: str
    moved_bytes: float
    flops: float
    floor: str
    tolerance: float
    seconds: float


@dataclass(frozen=True)
class Contender:
    """Someone who computes the operation. ``work`` does one step and returns what it found.

    Args:
        who: NAIVE, "triton", …
        work: → (loss or None, gradient or result). None where the loss can't be compared (no row weights).
        ours: its error is asserted, and an exception of it fails the bench. Others' failures are reported.
    """

    who: str
    work: Callable[[], tuple[Tensor | None, Tensor]]
    ours: bool = False


@dataclass(frozen=True)
class Truth:
    """The loss and its gradient (of ``rows`` alone, where given), or a result, in float64."""

    loss: Tensor
    gradient: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """One contender on one case. No time where it could not run; ``note`` says why."""

    operation: str
    shape: str
    images: int
    who: str
    unit: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    wall_ms: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    bytes_per_element: float | None = None
    time_over_naive: float | None = None
    peak_over_naive: float | None = None
    floor: str = ""
    floor_ms: float | None = None
    percent_of_floor: float | None = None
    moved_bytes: float = 0.0
    flops: float = 0.0
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class StepRow:
    """A whole training step done one way: BASIC off, on, or the naive way.

    ``…_over_off``: against the same round's step with BASIC off; median, lowest and highest of the rounds. ``errors``
    are on's against the naive way's. ``parts_ms``: where the time goes, medians.
    """

    shape: str
    way: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    wall_ms: float
    repeats: int
    time_over_off: float
    lowest_over_off: float
    highest_over_off: float
    peak_bytes: int
    adds_bytes: int
    loss_error: float | None
    gradient_error: float | None
    parts_ms: dict[str, float]
    flops: dict[str, float]
    basic_share_of_flops: float
    basic_share_of_flops_in_7b: float


@dataclass(frozen=True)
class Gate:
    """A bound on memory.

    ``strict`` is the goal's figure. ``allowed`` is what is asserted: the same, or with the scratch that the
    implementation states.
    """

    name: str
    who: str
    measured_bytes: float
    strict_bytes: float
    allowed_bytes: float
    per: float  # elements of the unit
    unit: str
    allowance: str  # what allowed has beyond strict

    @property
    def held(self) -> bool:
        return self.measured_bytes <= self.allowed_bytes

    @property
    def held_strictly(self) -> bool:
        return self.measured_bytes <= self.strict_bytes

    def sentence(self) -> str:
        figures = [value / self.per for value in (self.measured_bytes, self.strict_bytes, self.allowed_bytes)]
        measured, strict, allowed = (f"{x:.2f}" if x < 1000 else f"{x:,.0f}" for x in figures)
        text = f"{self.who}, {self.name}: {measured} {self.unit}, strict {strict}: "
        if self.held_strictly:
            return text + "held"
        over = (self.measured_bytes - self.strict_bytes) / MIB
        verdict = "within" if self.held else "BROKEN, beyond"
        return f"{text}{over:.2f} MiB over, {verdict} the {allowed} with its {self.allowance}"


@dataclass
class Report:
    """Collects a run. ``device`` is where it runs, ``scale`` one of tiny, cpu, gpu."""

    device: torch.device
    scale: str
    rates: measure.Rates
    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    compiled: str = ""
    notes: list[str] = field(default_factory=list)

    def compare(self, case: Case, contenders: Sequence[Contender], truth: Truth) -> None:
        """Check, weigh and time each contender on one case; naive eager comes first, the others are held against it."""
        rows: dict[str, Row] = {}
        works: dict[str, Callable[[], object]] = {}
        for contender in contenders:
            row = Row(case.operation, case.shape, case.images, contender.who, case.unit)
            try:
                loss, gradient = contender.work()
                compared = gradient if truth.rows is None else gradient[truth.rows]
                row = dataclasses.replace(
                    row,
                    loss_error=None if loss is None else measure.relative(loss, truth.loss),
                    gradient_error=measure.relative(compared, truth.gradient),
                )
                del loss, gradient, compared
                if self.device.type == "cuda":
                    contender.work()  # whatever is compiled or tuned on first use is there now
                peak = measure.peak_bytes(contender.work, self.device)
            except Exception as error:
                if contender.ours:
                    raise
                short = "out of memory" if isinstance(error, torch.OutOfMemoryError) else repr(error)
                rows[contender.who] = dataclasses.replace(row, note=textwrap.shorten(f"failed: {short}", 200))
                _free(self.device)
                continue
            if contender.ours:
                self._assert_right(case, row, rows.get(NAIVE))
            rows[contender.who] = dataclasses.replace(
                row, peak_bytes=peak, bytes_per_element=peak / max(case.elements, 1)
            )
            works[contender.who] = contender.work
            _free(self.device)
        floor_ms = self.rates.gemm_ms(case.flops) if case.floor == "gemm" else self.rates.copy_ms(case.moved_bytes)
        for who, timing in measure.timings(works, self.device, case.seconds).items():
            rows[who] = dataclasses.replace(
                rows[who],
                **dataclasses.asdict(timing),
                floor=case.floor,
                floor_ms=floor_ms,
                percent_of_floor=100 * floor_ms / timing.p50_ms,
                moved_bytes=case.moved_bytes,
                flops=case.flops,
            )
        self.rows += [_against(row, rows.get(NAIVE)) for row in rows.values()]

    def _assert_right(self, case: Case, row: Row, naive: Row | None) -> None:
        for what in ("loss_error", "gradient_error"):
            error = getattr(row, what)
            base = None if naive is None else getattr(naive, what)
            allowed = case.tolerance + (base or 0.0)
            assert error is None or error <= allowed, (
                f"{row.who}, {case.operation}, {case.shape}: {what} {error:.2g} is beyond {allowed:.2g}; not timed"
            )

    def gate(self, gate: Gate) -> None:
        """Record a bound on memory, and fail where it doesn't hold."""
        self.gates.append(gate)
        assert gate.held, gate.sentence()

    # ---- for a person

    def table(self) -> str:
        """Everything, as text."""
        parts = [_about(self.about, self.rates)]
        for operation in dict.fromkeys(row.operation for row in self.rows):
            parts.append(_rows_table(operation, [row for row in self.rows if row.operation == operation]))
        for shape in dict.fromkeys(step.shape for step in self.steps):
            parts.append(_steps_table([step for step in self.steps if step.shape == shape]))
        if self.gates:
            lines = [f"  {gate.sentence()}" for gate in self.gates]
            parts.append("\n".join(["Memory gates", *lines]))
        if self.compiled:
            parts.append(self.compiled)
        if self.notes:
            parts.append("\n".join(["Not measured in this run", *(f"  {note}" for note in self.notes)]))
        return "\n\n".join(parts)

    # ---- for a machine

    def write(self, folder: Path) -> dict[str, Path]:
        """Into ``folder``, named after the device: a JSON and a plot of the operations, a JSON of whole steps.

        Each only where there is something in it, so that a run of some bench files leaves the others' results alone.

        Returns:
            What was written: "results", "plot", "step results".
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", self.about["device"].lower()).strip("-")
        if self.scale == "tiny":
            stem += "-tiny"
        written: dict[str, Path] = {}
        if self.steps:
            written["step results"] = folder / f"{stem}-step.json"
            steps = [dataclasses.asdict(step) for step in self.steps]
            _write_json(
                written["step results"],
                {**self.about, "scale": self.scale, "rates": dataclasses.asdict(self.rates), "steps": steps},
            )
        if not self.rows:
            return written
        content = {
            **self.about,
            "scale": self.scale,
            "rates": dataclasses.asdict(self.rates),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "gates": [
                {**dataclasses.asdict(gate), "held": gate.held, "held_strictly": gate.held_strictly}
                for gate in self.gates
            ],
            "not_measured": self.notes,
        }
        written["results"] = folder / f"{stem}.json"
        _write_json(written["results"], content)
        written["plot"] = folder / f"{stem}.png"
        plot_rows(self.rows, self.about["device"], written["plot"])
        return written


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _against(row: Row, naive: Row | None) -> Row:
    if naive is None:
        return row
    return dataclasses.replace(
        row,
        time_over_naive=_ratio(row.p50_ms, naive.p50_ms),
        peak_over_naive=_ratio(row.peak_bytes, naive.peak_bytes),
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _about(about: dict[str, Any], rates: measure.Rates) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    commit = (about["commit"] or "no commit")[:10] + (" + uncommitted changes" if about["uncommitted_changes"] else "")
    return "\n".join(
        [
            f"{about['device']}; {about['clock']}, load {about['load_at_start']} at the start; {commit}",
            versions,
            f"measured here: copy {rates.copy_gb_per_s:.1f} GB/s, {rates.gemm} {rates.gemm_tflops:.3g} TFLOP/s",
        ]
    )


def _rows_table(operation: str, rows: list[Row]) -> str:
    unit = rows[0].unit
    header = [
        operation, "ms p20", "p50", "p80", "÷ naive", "peak MiB", f"B/({unit})", "÷ naive", "% of floor", "error"
    ]  # fmt: skip
    body: list[list[str]] = []
    last = None
    for row in rows:
        if row.shape != last:
            body.append([f"{row.shape}"])
            last = row.shape
        if row.p50_ms is None:
            body.append([f"  {row.who}", row.note])
            continue
        errors = [e for e in (row.loss_error, row.gradient_error) if e is not None]
        body.append(
            [
                f"  {row.who}",
                _number(row.p20_ms),
                _number(row.p50_ms),
                _number(row.p80_ms),
                _number(row.time_over_naive, "{:.2f}"),
                _number(None if row.peak_bytes is None else row.peak_bytes / MIB, "{:.1f}"),
                _number(row.bytes_per_element, "{:.2f}"),
                _number(row.peak_over_naive, "{:.3f}"),
                f"{row.percent_of_floor:.0f} {row.floor}",
                f"{max(errors):.0e}" if errors else "",
            ]
        )
    return _columns(header, body)


def _steps_table(steps: list[StepRow]) -> str:
    """One shape's ways, and below where the time of each goes."""
    header = ["whole step", "ms p20", "p50", "p80", "÷ off", "lowest", "highest", "peak MiB", "adds MiB", "error"]
    body = [[steps[0].shape]]
    for step in steps:
        errors = [error for error in (step.loss_error, step.gradient_error) if error is not None]
        body.append(
            [
                f"  {step.way}",
                *(_number(value) for value in (step.p20_ms, step.p50_ms, step.p80_ms)),
                *(f"{value:.3f}" for value in (step.time_over_off, step.lowest_over_off, step.highest_over_off)),
                *(f"{value / MIB:.1f}" for value in (step.peak_bytes, step.adds_bytes)),
                f"{max(errors):.0e}" if errors else "",
            ]
        )
    fullest_first = sorted(steps, key=lambda step: -len(step.parts_ms))
    names = list(dict.fromkeys(name for step in fullest_first for name in step.parts_ms))
    where = [[f"  {name}", *(_number(step.parts_ms.get(name), "{:.1f}") for step in steps)] for name in names]
    where.append(["  sum", *(f"{sum(step.parts_ms.values()):.1f}" for step in steps)])
    here = steps[0]
    counted = sum(here.flops.values())
    flops = ", ".join(f"{name} {value / counted:.2%}" for name, value in here.flops.items())
    return "\n".join(
        [
            _columns(header, body),
            "",
            _columns(["where the time goes, ms", *(step.way for step in steps)], where),
            "",
            f"counted {counted / 1e9:.1f} GFLOP: {flops}",
            f"BASIC adds {here.basic_share_of_flops:.2%} to the FLOPs of a step without it; in 7B, counted the same "
            f"way, {here.basic_share_of_flops_in_7b:.2%}",
        ]
    )


def _columns(header: list[str], body: list[list[str]]) -> str:
    """Lines as wide as the header in columns; shorter ones go across."""
    full = [line for line in body if len(line) == len(header)]
    widths = [max(len(line[i]) for line in [header, *full]) for i in range(len(header))]
    widths[0] = max(widths[0], 22, *(len(line[0]) for line in body if len(line) == 2))

    def text(line: list[str]) -> str:
        if len(line) != len(header):
            return "  ".join([line[0].ljust(widths[0]), *line[1:]]).rstrip()
        return "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )

    ruler = "─" * len(text(header))
    return "\n".join([text(header), ruler, *(text(line) for line in body)])


def _number(value: float | None, pattern: str = "{:.3g}") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if pattern == "{:.3g}" and value >= 100 else pattern.format(value)


def plot_rows(rows: Iterable[Row], title: str, path: Path) -> None:
    """Peak memory and time over images per batch: a row of panels for each operation, at its first table size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

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
