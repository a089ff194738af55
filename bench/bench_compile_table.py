"""The kernels compiled for cards that aren't here: what of README.md's table still holds, printed with the rest."""

from __future__ import annotations

import importlib.util

import pytest

from bench.report import Report


def test_compile_table(report: Report) -> None:
    if importlib.util.find_spec("triton") is None:
        report.notes.append("the compile table: triton isn't installed")
        pytest.skip("triton isn't installed")
    from bench import compile_table, compiling

    rows, stale = compile_table.current()
    assert rows or stale
    lines = ["Compiled without a GPU (registers a thread / shared memory in KiB a program; bench/README.md keeps it)"]
    if rows:
        lines.append(compile_table.summary(rows))
    if rows and report.scale != "tiny":
        lines += ["", compiling.format_table(rows)]
    report.compiled = "\n".join(lines)
    if stale:
        reason = f"compile table, {len(stale)} rows of kernels that changed since: python -m bench.compile_table"
        report.notes.append(reason)
    if report.scale != "tiny":
        problems = [problem for row in rows for problem in row.problems()]
        assert not problems, "\n".join(problems)
