"""The table of registers and shared memory of every kernel and configuration, kept in README.md.

    python -m bench.compile_table            compiles what changed since README.md was written, and writes it there
    python -m bench.compile_table --check    compiles nothing; exit 1 where README.md isn't current

Compiling everything takes some minutes; no GPU is needed. What a row was compiled from is remembered as a fingerprint
in results/compile_table.json: the code of the kernel files (comments and docstrings left out), the configuration, and
Triton's version.
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
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import compile_cases, compiling

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
STORE = HERE / "results" / "compile_table.json"
BEGIN, END = "<!-- compile table -->", "<!-- end of compile table -->"

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


def wanted(version: str) -> dict[Key, tuple[str, compiling.CompileCase]]:
    """Every row that the table should have, made by a version of Triton: its key → fingerprint and case."""
    rows = {}
    for module, cases in compile_cases.OF_KERNEL_FILE.items():
        code = kernel_code(module)
        for case in cases():
            described = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name != "function"}
            configuration = json.dumps(described, sort_keys=True, default=str)
            text = f"{version}\n{code}\n{case.function.__name__}\n{configuration}"
            fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
            for capability in compiling.SHARED_LIMIT_BYTES:
                rows[case.name, capability] = fingerprint, case
    return rows


def stored() -> dict[Key, tuple[str, compiling.Compiled]]:
    """The rows of the last time, with what they were compiled from."""
    if not STORE.exists():
        return {}
    rows = {}
    for entry in json.loads(STORE.read_text(encoding="utf-8"))["rows"]:
        fingerprint = entry.pop("fingerprint")
        rows[entry["name"], entry["capability"]] = fingerprint, compiling.Compiled(**entry)
    return rows


def stored_version() -> str | None:
    """The Triton that made the stored rows."""
    if not STORE.exists():
        return None
    version: str = json.loads(STORE.read_text(encoding="utf-8"))["triton"]
    return version


def current() -> tuple[list[compiling.Compiled], list[Key]]:
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


def _compile(key: Key) -> compiling.Compiled:
    """Compile one case in a worker. It looks the case up: cases hold functions, which can't be pickled."""
    name, capability = key
    if not _CASES:
        _CASES.update({case.name: case for case in compile_cases.all_cases()})
    return compiling.compile_case(_CASES[name], capability)


_CASES: dict[str, compiling.CompileCase] = {}


def update(workers: int) -> list[compiling.Compiled]:
    """Compile what changed, write the store and README.md, and return every row."""
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
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    README.write_text(before + section(ordered, version) + rest.split(END, 1)[1], encoding="utf-8")
    return ordered


def store(rows: Mapping[Key, compiling.Compiled], order: Mapping[Key, tuple[str, Any]], version: str) -> None:
    """Write the rows that there are, a line each, with their fingerprints."""
    STORE.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps({**dataclasses.asdict(rows[key]), "fingerprint": order[key][0]}, ensure_ascii=False)
        for key in order
        if key in rows
    ]
    STORE.write_text(f'{{"triton": {json.dumps(version)}, "rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def section(rows: Iterable[compiling.Compiled], version: str | None) -> str:
    """The part of README.md from BEGIN to END."""
    rows = list(rows)
    text = (
        f"Compiled with triton {version}: {summary(rows)}\n\n"
        "<details><summary>Registers a thread / shared memory in KiB a program</summary>\n\n"
        f"{compiling.format_table(rows)}\n\n</details>"
    )
    return f"{BEGIN}\n{text}\n{END}"


def summary(rows: Iterable[compiling.Compiled]) -> str:
    rows = list(rows)
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
    """Why README.md isn't current; None if it is. Compiles nothing."""
    rows, stale = current()
    command = "run `python -m bench.compile_table`"
    if stale:
        named = ", ".join(f"{name} sm_{capability}" for name, capability in stale[:3])
        return f"{len(stale)} rows of the compile table are not current ({named}, …): {command}"
    if section(rows, stored_version()) not in README.read_text(encoding="utf-8"):
        return f"bench/README.md doesn't have the table of results/compile_table.json: {command}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compile_table", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile nothing; exit 1 where README.md isn't current")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile")
    options = parser.parse_args(arguments)
    if options.check:
        reason = why_not_current()
        print(reason or "bench/README.md is current")
        return 1 if reason else 0
    rows = update(options.workers)
    print(compiling.format_table(rows))
    print(summary(rows))
    return 1 if any(row.problems() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
