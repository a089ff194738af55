"""Text tables and JSON files of the bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from basic_lite.sizes import MIB


def columns(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Lines as wide as the header in columns; shorter ones go across."""
    full = [line for line in body if len(line) == len(header)]
    widths = [max(len(line[i]) for line in [header, *full]) for i in range(len(header))]
    widths[0] = max(widths[0], 22, *(len(line[0]) for line in body if len(line) == 2))

    def text(line: Sequence[str]) -> str:
        if len(line) != len(header):
            return "  ".join([line[0].ljust(widths[0]), *line[1:]]).rstrip()
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([line[0].ljust(widths[0]), *rest])

    return "\n".join([text(header), "─" * len(text(header)), *(text(line) for line in body)])


def number(value: float | None, pattern: str = "{:.3g}") -> str:
    """Format a number; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.0f}" if pattern == "{:.3g}" and value >= 100 else pattern.format(value)


def mib(size: float | None) -> str:
    """Bytes as MiB."""
    return number(None if size is None else size / MIB, "{:.1f}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to ``path``; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
