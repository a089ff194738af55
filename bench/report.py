"""What a run of the bench found: rows, gates, a table a person can read, one JSON, one plot."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.plot import plot_rows
from bench.rows import NAIVE, Case, Contender, Gate, Row, StepRow, Truth
from bench.tables import columns, mib, number, write_json


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
    notes: list[str] = field(default_factory=list)

    def compare(self, case: Case, contenders: Sequence[Contender], truth: Truth) -> None:
        """Check, weigh and time each contender on one case; naive eager comes first, the others are held against it."""
        rows: dict[str, Row] = {}
        works: dict[str, Callable[[], object]] = {}
        for contender in contenders:
            try:
                rows[contender.who] = self._checked(case, contender, truth, rows.get(NAIVE))
                works[contender.who] = contender.work
            except Exception as error:
                if contender.ours:
                    raise
                short = "out of memory" if isinstance(error, torch.OutOfMemoryError) else repr(error)
                note = textwrap.shorten(f"failed: {short}", 200)
                rows[contender.who] = Row(case.operation, case.shape, case.images, contender.who, case.unit, note=note)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
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
        naive = rows.get(NAIVE, Row("", "", 0, "", ""))
        for row in rows.values():
            time, peak = _ratio(row.p50_ms, naive.p50_ms), _ratio(row.peak_bytes, naive.peak_bytes)
            self.rows.append(dataclasses.replace(row, time_over_naive=time, peak_over_naive=peak))

    def _checked(self, case: Case, contender: Contender, truth: Truth, naive: Row | None) -> Row:
        """Errors and peak memory of a contender; ours must be right before it is timed."""
        loss, gradient = contender.work()
        compared = gradient if truth.rows is None else gradient[truth.rows]
        errors = {
            "loss_error": None if loss is None else measure.relative(loss, truth.loss),
            "gradient_error": measure.relative(compared, truth.gradient),
        }
        del loss, gradient, compared
        for what, error in errors.items() if contender.ours else ():
            allowed = case.tolerance + ((getattr(naive, what) or 0.0) if naive is not None else 0.0)
            assert error is None or error <= allowed, (
                f"{contender.who}, {case.operation}, {case.shape}: {what} {error:.2g} > {allowed:.2g}; not timed"
            )
        if self.device.type == "cuda":
            contender.work()  # whatever is compiled or tuned on first use is there now
        peak = measure.peak_bytes(contender.work, self.device)
        per = peak / max(case.elements, 1)
        row = Row(case.operation, case.shape, case.images, contender.who, case.unit, peak_bytes=peak)
        return dataclasses.replace(row, bytes_per_element=per, **errors)

    def gate(self, gate: Gate) -> None:
        """Record a bound on memory, and fail where it doesn't hold."""
        self.gates.append(gate)
        assert gate.held, gate.sentence()

    def gate_rows(self, case: Case, what: str, strict: float, bounds: Mapping[str, tuple[float, str]]) -> None:
        """Bound the peak memory of contenders in a case.

        Args:
            case: the case that was compared.
            what: the name of the bounded quantity.
            strict: the goal's bytes.
            bounds: who → bytes that are asserted, and what those have beyond ``strict``.
        """
        for row in self.rows:
            if (row.operation, row.shape) == (case.operation, case.shape) and row.who in bounds and row.peak_bytes:
                allowed, allowance = bounds[row.who]
                name, unit = f"{what}, {case.shape}", f"bytes per {case.unit}"
                self.gate(Gate(name, row.who, row.peak_bytes, strict, allowed, case.elements, unit, allowance))

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
        if self.notes:
            parts.append("\n".join(["Not measured in this run", *(f"  {note}" for note in self.notes)]))
        return "\n\n".join(parts)

    # ---- for a machine

    def write(self, folder: Path) -> dict[str, Path]:
        """Write files named after the device: a JSON and a plot of the operations, a JSON of whole steps.

        Each is written only if it has rows, so that a run of some bench files leaves the others' results alone.

        Returns:
            What was written: "results", "plot", "step results".
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", self.about["device"].lower()).strip("-")
        if self.scale == "tiny":
            stem += "-tiny"
        written: dict[str, Path] = {}
        about = {**self.about, "scale": self.scale, "rates": dataclasses.asdict(self.rates)}
        if self.steps:
            written["step results"] = folder / f"{stem}-step.json"
            write_json(written["step results"], about | {"steps": [dataclasses.asdict(step) for step in self.steps]})
        if self.rows:
            written["results"], written["plot"] = folder / f"{stem}.json", folder / f"{stem}.png"
            gates = [
                {**dataclasses.asdict(gate), "held": gate.held, "held_strictly": gate.held_strictly}
                for gate in self.gates
            ]
            rows = [dataclasses.asdict(row) for row in self.rows]
            write_json(written["results"], about | {"rows": rows, "gates": gates, "not_measured": self.notes})
            plot_rows(self.rows, self.about["device"], written["plot"])
        return written


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
                number(row.p20_ms),
                number(row.p50_ms),
                number(row.p80_ms),
                number(row.time_over_naive, "{:.2f}"),
                mib(row.peak_bytes),
                number(row.bytes_per_element, "{:.2f}"),
                number(row.peak_over_naive, "{:.3f}"),
                f"{row.percent_of_floor:.0f} {row.floor}",
                f"{max(errors):.0e}" if errors else "",
            ]
        )
    return columns(header, body)


def _steps_table(steps: list[StepRow]) -> str:
    """One shape's ways, and below where the time of each goes."""
    header = ["whole step", "ms p20", "p50", "p80", "÷ off", "lowest", "highest", "peak MiB", "adds MiB", "error"]
    body = [[steps[0].shape]]
    for step in steps:
        errors = [error for error in (step.loss_error, step.gradient_error) if error is not None]
        body.append(
            [
                f"  {step.way}",
                *(number(value) for value in (step.p20_ms, step.p50_ms, step.p80_ms)),
                *(f"{value:.3f}" for value in (step.time_over_off, step.lowest_over_off, step.highest_over_off)),
                mib(step.peak_bytes),
                mib(step.adds_bytes),
                f"{max(errors):.0e}" if errors else "",
            ]
        )
    fullest_first = sorted(steps, key=lambda step: -len(step.parts_ms))
    names = list(dict.fromkeys(name for step in fullest_first for name in step.parts_ms))
    where = [[f"  {name}", *(number(step.parts_ms.get(name), "{:.1f}") for step in steps)] for name in names]
    where.append(["  sum", *(f"{sum(step.parts_ms.values()):.1f}" for step in steps)])
    here = steps[0]
    counted = sum(here.flops.values())
    flops = ", ".join(f"{name} {value / counted:.2%}" for name, value in here.flops.items())
    return "\n".join(
        [
            columns(header, body),
            "",
            columns(["where the time goes, ms", *(step.way for step in steps)], where),
            "",
            f"counted {counted / 1e9:.1f} GFLOP: {flops}",
            f"BASIC adds {here.basic_share_of_flops:.2%} to the FLOPs of a step without it; in 7B, counted the same "
            f"way, {here.basic_share_of_flops_in_7b:.2%}",
        ]
    )
