"""The table of registers and shared memory of every kernel and configuration, kept in table.md.

    python -m tests.support.compiling.table            compiles what changed since table.md was written, and writes it
    python -m tests.support.compiling.table --check    compiles nothing; exit 1 where table.md isn't current

Compiling everything takes some minutes; no GPU is needed. What a row was compiled from is remembered as a fingerprint
in table.json: the code of the kernel files (comments and docstrings left out), the configuration, and Triton's version.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.support.compiling import cases as compile_cases
from tests.support.compiling import compiler

HERE = Path(__file__).resolve().parent
TABLE, STORE = HERE / "table.md", HERE / "table.json"
COMMAND = "python -m tests.support.compiling.table"

Key = tuple[str, int]  # a case's name, a compute capability


def kernel_code(module: str) -> str:
    """The parts of a kernel file that decide its binaries: ``@triton.jit`` functions and module constants."""
    spec = importlib.util.find_spec(f"basic_lite_kernels.{module}")
    assert spec is not None and spec.origin is not None
    kept = []
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            if not any(ast.unparse(decorator).startswith("triton.") for decorator in node.decorator_list):
                continue
            if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                node.body = node.body[1:]
            kept.append(ast.unparse(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            kept.append(ast.unparse(node))
    return "\n".join(kept)


def wanted(version: str) -> dict[Key, tuple[str, compiler.CompileCase]]:
    """Every row that the table should have, made by a version of Triton: its key → fingerprint and case."""
    rows = {}
    for module, cases in compile_cases.OF_KERNEL_FILE.items():
        code = kernel_code(module)
        for case in cases():
            described = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name != "function"}
            configuration = json.dumps(described, sort_keys=True, default=str)
            text = f"{version}\n{code}\n{case.function.__name__}\n{configuration}"
            fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
            for capability in compiler.SHARED_LIMIT_BYTES:
                rows[case.name, capability] = fingerprint, case
    return rows


def stored() -> dict[Key, tuple[str, compiler.Compiled]]:
    """The rows of the last time, with what they were compiled from."""
    if not STORE.exists():
        return {}
    rows = {}
    for entry in json.loads(STORE.read_text(encoding="utf-8"))["rows"]:
        fingerprint = entry.pop("fingerprint")
        rows[entry["name"], entry["capability"]] = fingerprint, compiler.Compiled(**entry)
    return rows


def stored_version() -> str | None:
    """The Triton that made the stored rows."""
    if not STORE.exists():
        return None
    version: str = json.loads(STORE.read_text(encoding="utf-8"))["triton"]
    return version


def current() -> tuple[list[compiler.Compiled], list[Key]]:
    """Rows that still hold, in the order of the cases, and the keys of those to be compiled.

    The installed Triton doesn't matter: a row holds while its code and configuration are unchanged.
    """
    old = stored()
    held, stale = [], []
    for key, (fingerprint, _) in wanted(stored_version() or "").items():
        if key in old and old[key][0] == fingerprint:
            held.append(old[key][1])
        else:
            stale.append(key)
    return held, stale


def _compile(key: Key) -> compiler.Compiled:
    """Compile one case in a worker. It looks the case up: cases hold functions, which can't be pickled."""
    name, capability = key
    if not _CASES:
        _CASES.update({case.name: case for case in compile_cases.all_cases()})
    return compiler.compile_case(_CASES[name], capability)


_CASES: dict[str, compiler.CompileCase] = {}


def update(workers: int) -> list[compiler.Compiled]:
    """Compile what changed, write the store and table.md, and return every row."""
    # Looked up once: a kernel that is edited while this runs keeps the fingerprint of what was compiled.
    version = importlib.metadata.version("triton")
    order = wanted(version)
    old = stored()
    rows = {key: old[key][1] for key, (fingerprint, _) in order.items() if key in old and old[key][0] == fingerprint}
    stale = [key for key in order if key not in rows]
    started = time.monotonic()
    if stale:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for i, row in enumerate(pool.map(_compile, stale), 1):
                rows[row.name, row.capability] = row
                if i % 25 == 0 or i == len(stale):
                    print(f"{i} of {len(stale)} compiled, {time.monotonic() - started:.0f} s", flush=True)
                    store(rows, order, version)
    ordered = [rows[key] for key in order]
    TABLE.write_text(document(ordered, version), encoding="utf-8")
    return ordered


def store(rows: Mapping[Key, compiler.Compiled], order: Mapping[Key, tuple[str, Any]], version: str) -> None:
    """Write the rows that there are, a line each, with their fingerprints."""
    lines = [
        json.dumps({**dataclasses.asdict(rows[key]), "fingerprint": order[key][0]}, ensure_ascii=False)
        for key in order
        if key in rows
    ]
    STORE.write_text(f'{{"triton": {json.dumps(version)}, "rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def document(rows: Sequence[compiler.Compiled], version: str | None) -> str:
    """What table.md holds."""
    return (
        "# The kernels, compiled for cards that aren't here\n\n"
        f"Written by `{COMMAND}` with triton {version}: {summary(rows)}\n"
        "Cells are registers a thread / shared memory in KiB a program.\n\n"
        f"{compiler.format_table(rows)}\n"
    )


def summary(rows: Sequence[compiler.Compiled]) -> str:
    problems = [problem for row in rows for problem in row.problems()]
    cards = ", ".join(f"sm_{c}" for c in sorted({row.capability for row in rows}))
    text = f"{len({row.name for row in rows})} configurations on {cards}; at most "
    text += f"{max((row.registers for row in rows), default=0)} registers a thread, "
    text += f"{max((row.shared_bytes for row in rows), default=0) / 1024:.1f} KiB of shared memory; "
    if problems:
        return text + "PROBLEMS: " + "; ".join(problems)
    spilled = [row for row in rows if row.stack_bytes]
    most = max((row.stack_bytes for row in spilled), default=0)
    said = (
        f"{len(spilled)} of {len(rows)} binaries have a stack, at most {most} bytes" if spilled else "no stack at all"
    )
    return text + f"{said}; nothing over a limit."


def why_not_current() -> str | None:
    """Why table.md isn't current; None if it is. Compiles nothing."""
    rows, stale = current()
    if stale:
        named = ", ".join(f"{name} sm_{capability}" for name, capability in stale[:3])
        return f"{len(stale)} rows of the compile table are not current ({named}, …): run `{COMMAND}`"
    if document(rows, stored_version()) != TABLE.read_text(encoding="utf-8"):
        return f"table.md isn't the table of table.json: run `{COMMAND}`"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile nothing; exit 1 where table.md isn't current")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile")
    options = parser.parse_args(arguments)
    if options.check:
        reason = why_not_current()
        print(reason or "table.md is current")
        return 1 if reason else 0
    rows = update(options.workers)
    print(compiler.format_table(rows))
    print(summary(rows))
    return 1 if any(row.problems() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
