"""Memory of a training step with BASIC off, on, and done the naive way: `python -m bench.rehearse`, no GPU, no weights.

Each is rehearsed on fake tensors from configurations alone (``basic_lite.rehearsal``), for a CUDA card with bfloat16:
the project's own step, and ``bench.naive_step`` in its place. ``--write`` keeps the result as
bench/results/rehearsal.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basic_lite.console import quiet_libraries
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal import Machine, Rehearser, rehearse
from basic_lite.units import GIB, MIB
from bench import measure
from bench.naive_step import NaiveStep
from bench.shapes import shape_recipe
from bench.tables import columns, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "rehearsal.json"


@dataclass(frozen=True)
class Setting:
    """A micro-batch of ``samples`` × ``tokens`` with an image a sample; the LLM's shape; LoRA's rank."""

    size: str
    samples: int
    tokens: int
    rank: int

    def __str__(self) -> str:
        return f"{self.size.upper()} {self.samples}×{self.tokens} r{self.rank}"


SETTINGS = (
    Setting("7b", 1, 1024, 16),
    Setting("7b", 2, 2048, 32),
    Setting("7b", 8, 1024, 128),
    Setting("13b", 4, 1024, 64),
)


@dataclass(frozen=True)
class Way:
    """A step done one way. ``adds_bytes``: peak beyond the same step with BASIC off; ``share``: of this way's peak."""

    needed_bytes: int  # with the allowance for context and fragmentation
    peak_bytes: int
    forward_peak_bytes: int
    adds_bytes: int
    share: float
    seconds: float  # that its rehearsal took


@dataclass(frozen=True)
class Row:
    """One setting, done in each way; ``maps_bytes``: what the naive way's attention maps take of it, counted."""

    setting: Setting
    maps_bytes: int
    off: Way
    ours: Way
    naive: Way


def rehearse_row(setting: Setting, shapes: Path) -> Row:
    """The three ways of one setting; ``shapes``: where configurations are written on first use."""
    recipe = shape_recipe(
        shapes, setting.size, micro_batch=setting.samples, max_length=setting.tokens, rank=setting.rank
    )
    # Only eager attention hands out its maps.
    eager = recipe.model_copy(update={"model": recipe.model.model_copy(update={"attention": "eager"})})
    frontend, machine = load_frontend(recipe.model), Machine.card(recipe)
    ways: list[Way] = []
    for rehearsal_of in (
        partial(rehearse, recipe, frontend, machine, basic=False),
        partial(rehearse, recipe, frontend, machine),
        lambda: Rehearser(eager, frontend, machine, in_full=True, step=NaiveStep).rehearse(),
    ):
        started = time.perf_counter()
        found = rehearsal_of()
        adds = found.peak_bytes - (ways[0].peak_bytes if ways else found.peak_bytes)
        seconds = round(time.perf_counter() - started, 1)
        sizes = found.needed_bytes, found.peak_bytes, found.forward_peak_bytes
        ways.append(Way(*sizes, adds, adds / found.peak_bytes, seconds))
    text = frontend.config.text_config
    maps = text.num_hidden_layers * setting.samples * text.num_attention_heads * setting.tokens**2
    return Row(setting, maps * machine.dtype.itemsize, *ways)


HEADER = ("", "off", "ours", "naive", "ours adds", "share", "naive adds", "share", "of it maps", "rehearsed in")


def line(row: Row) -> tuple[str, ...]:
    """A row of the table: GiB needed with the allowance, then what BASIC adds to the peak."""
    return (
        str(row.setting),
        *(f"{way.needed_bytes / GIB:.2f} GiB" for way in (row.off, row.ours, row.naive)),
        f"{row.ours.adds_bytes / MIB:.0f} MiB",
        f"{row.ours.share:.2%}",
        f"{row.naive.adds_bytes / MIB:,.0f} MiB",
        f"{row.naive.share:.0%}",
        f"{row.maps_bytes / MIB:,.0f} MiB",
        " + ".join(f"{way.seconds:.1f}" for way in (row.off, row.ours, row.naive)) + " s",
    )


def content(rows: Iterable[Row]) -> dict[str, Any]:
    """The JSON: rows, and with what they were made."""
    about = measure.describe(torch.device("cpu"))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    return {
        "what": "peak memory of a training step on a CUDA card with bfloat16, rehearsed on fake tensors; bytes",
        "versions": versions,
        **{name: about[name] for name in ("commit", "uncommitted_changes", "date")},
        "rows": [asdict(row) for row in rows],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rehearse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(RESULTS.parents[2])}")
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    rows = []
    with tempfile.TemporaryDirectory() as shapes:
        for setting in SETTINGS:
            rows.append(rehearse_row(setting, Path(shapes)))
            print(f"{setting}: done", file=sys.stderr, flush=True)
    print(columns(HEADER, [line(row) for row in rows]))
    if chosen.write:
        write_json(RESULTS, content(rows))
        print(f"\nresults  {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
