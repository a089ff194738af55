"""What a run of the bench found: rows, gates, a table a person can read, one JSON, one plot."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.plot import plot_rows
from bench.rows import NAIVE, Case, Contender, Found, Gate, Row, StepRow
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

    def compare(self, case: Case, contenders: Sequence[Contender], truth: Found) -> None:
        """Check, weigh and time each contender on one case; naive eager comes first, the others are held against it."""
        rows: dict[str, Row] = {}
        works: dict[str, Callable[[], object]] = {}
        for contender in contenders:
            row = rows[contender.who] = Row(case.operation, case.shape, case.images, contender.who, case.unit)
            try:
                self._check(row, case, contender, truth, rows[NAIVE])
                works[contender.who] = contender.work
            except Exception as error:
                if contender.ours:
                    raise
                short = "out of memory" if isinstance(error, torch.OutOfMemoryError) else repr(error)
                row.note = textwrap.shorten(f"failed: {short}", 200)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        floors = {"gemm": self.rates.gemm_ms(case.flops), "copy": self.rates.copy_ms(case.moved_bytes)}
        floor = max(floors, key=lambda name: floors[name])
        seconds = 0.02 if self.scale == "tiny" else 1.0
        times = measure.timings(works, self.device, seconds)
        for who, timing in times.items():
            rows[who] = replace(
                rows[who],
                **asdict(timing),
                floor=floor,
                floor_ms=floors[floor],
                percent_of_floor=100 * floors[floor] / timing.p50_ms,
                moved_bytes=case.moved_bytes,
                flops=case.flops,
                time_over_naive=timing.p50_ms / times[NAIVE].p50_ms if NAIVE in times else None,
                peak_over_naive=_ratio(rows[who].peak_bytes, rows[NAIVE].peak_bytes),
            )
        self.rows += rows.values()

    def _check(self, row: Row, case: Case, contender: Contender, truth: Found, naive: Row) -> None:
        """Fill in errors and peak memory of a contender; ours must be right before it is timed."""
        pairs = zip(contender.work(), truth, strict=True)
        errors = [None if x is None or y is None else measure.relative(x, y) for x, y in pairs]
        row.loss_error, row.gradient_error = errors
        naive_errors = naive.loss_error, naive.gradient_error
        for what, error, of_naive in zip(("loss", "gradient"), errors, naive_errors, strict=True):
            allowed = case.tolerance + (of_naive or 0.0)
            assert not contender.ours or error is None or error <= allowed, (
                f"{row.who}, {case.operation}, {case.shape}: {what} {error:.2g} > {allowed:.2g}; not timed"
            )
        if self.device.type == "cuda":
            contender.work()  # whatever is compiled or tuned on first use is there now
        row.peak_bytes = measure.peak_bytes(contender.work, self.device)
        row.bytes_per_element = row.peak_bytes / case.elements

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
                name, unit, (allowed, allowance) = f"{what}, {case.shape}", f"bytes per {case.unit}", bounds[row.who]
                self.gate(Gate(name, row.who, row.peak_bytes, strict, allowed, case.elements, unit, allowance))

    def table(self) -> str:
        """Everything, for a person."""
        about, rates = self.about, self.rates
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
        parts = [
            f"{about['device']}; {about['clock']}, load {about['load_at_start']} at the start\n"
            f"{versions}, commit {about['commit']}\n"
            f"measured here: copy {rates.copy_gb_per_s:.1f} GB/s, {rates.gemm} {rates.gemm_tflops:.3g} TFLOP/s"
        ]
        for operation in dict.fromkeys(row.operation for row in self.rows):
            parts.append(_rows_table(operation, [row for row in self.rows if row.operation == operation]))
        if self.steps:
            parts.append(_steps_table(self.steps))
        if self.gates:
            parts.append("\n  ".join(["Memory gates", *(gate.sentence() for gate in self.gates)]))
        if self.device.type != "cuda":
            parts.append(
                "The kernels are not measured: that needs a GPU, and there `python -m bench.gpu_suite --out DIR`"
            )
        return "\n\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Write files named after the device, and say which: JSON and plot of the operations, JSON of whole steps.

        Each is written only if it has rows, so that a run of some bench files leaves the others' results alone.
        """
        stem = re.sub(r"[^a-z0-9]+", "-", self.about["device"].lower()).strip("-") + "-tiny" * (self.scale == "tiny")
        about = {**self.about, "scale": self.scale, "rates": asdict(self.rates)}
        written = []
        if self.steps:
            written.append(folder / f"{stem}-step.json")
            write_json(written[-1], about | {"steps": [asdict(step) for step in self.steps]})
        if self.rows:
            written += [folder / f"{stem}.json", folder / f"{stem}.png"]
            gates = [asdict(gate) | {"held": gate.held, "held_strictly": gate.held_strictly} for gate in self.gates]
            write_json(written[-2], about | {"rows": [asdict(row) for row in self.rows], "gates": gates})
            plot_rows(self.rows, self.about["device"], written[-1])
        return written


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _error(row: Row | StepRow) -> str:
    return number(max((e for e in (row.loss_error, row.gradient_error) if e is not None), default=None), "{:.0e}")


def _rows_table(operation: str, rows: list[Row]) -> str:
    unit = rows[0].unit
    header = [
        operation, "ms p20", "p50", "p80", "÷ naive", "peak MiB", f"B/({unit})", "÷ naive", "% of floor", "error"
    ]  # fmt: skip
    body: list[list[str]] = []
    for shape in dict.fromkeys(row.shape for row in rows):
        body.append([shape])
        for row in (row for row in rows if row.shape == shape):
            if row.note:
                body.append([f"  {row.who}", row.note])
                continue
            times = [number(value) for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
            memory = [
                mib(row.peak_bytes),
                number(row.bytes_per_element, "{:.2f}"),
                number(row.peak_over_naive, "{:.3f}"),
            ]
            floor = f"{row.percent_of_floor:.0f} {row.floor}"
            body.append([f"  {row.who}", *times, number(row.time_over_naive, "{:.2f}"), *memory, floor, _error(row)])
    return columns(header, body)


def _steps_table(steps: list[StepRow]) -> str:
    """The ways of a step, and below where the time of each goes."""
    header = ["whole step", "ms p20", "p50", "p80", "÷ off", "lowest", "highest", "peak MiB", "adds MiB", "error"]
    body = [[steps[0].shape]]
    for step in steps:
        times = [number(value) for value in (step.p20_ms, step.p50_ms, step.p80_ms)]
        times += [f"{value:.3f}" for value in (step.time_over_off, step.lowest_over_off, step.highest_over_off)]
        body.append([f"  {step.way}", *times, mib(step.peak_bytes), mib(step.adds_bytes), _error(step)])
    fullest_first = sorted(steps, key=lambda step: -len(step.parts_ms))
    names = dict.fromkeys(name for step in fullest_first for name in step.parts_ms)
    where = [[f"  {name}", *(number(step.parts_ms.get(name), "{:.1f}") for step in steps)] for name in names]
    where.append(["  sum", *(f"{sum(step.parts_ms.values()):.1f}" for step in steps)])
    here = steps[0]
    counted = sum(here.flops.values())
    flops = ", ".join(f"{name} {value / counted:.2%}" for name, value in here.flops.items())
    return (
        f"{columns(header, body)}\n\n{columns(['where the time goes, ms', *(step.way for step in steps)], where)}\n\n"
        f"counted {counted / 1e9:.1f} GFLOP: {flops}\n"
        f"BASIC adds {here.basic_share_of_flops:.2%} to the FLOPs of a step without it; in 7B, counted the same way, "
        f"{here.basic_share_of_flops_in_7b:.2%}"
    )
