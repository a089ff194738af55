"""How long each phase of the demo took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Phases:
    """Seconds each phase took; a phase whose result was there already is marked as reused."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside, below a heading."""
        self.console.rule(f"[bold]{name}", align="left")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def table(self) -> Table:
        """Seconds of each phase and in all."""
        table = Table(title="time", title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        for name, seconds in self.seconds.items():
            note = " (reused)" if name in self.reused else ""
            table.add_row(name + note, f"{seconds:.1f} s")
        table.add_row("total", f"{sum(self.seconds.values()):.1f} s", style="bold")
        return table
