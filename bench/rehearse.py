"""Memory of a training step with BASIC off, on, and done the naive way: `python -m bench.rehearse`, no GPU, no weights.

Each is rehearsed on fake tensors from configurations alone (``basic_lite.rehearsal``), for a CUDA card with bfloat16:
the project's own step, and ``bench.naive_step`` in its place. ``--write`` keeps the result as
bench/results/rehearsal.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from basic_lite.console import quiet_libraries
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.rules import changed_recipe
from basic_lite.rehearsal import Machine, Rehearser, rehearse
from basic_lite.sizes import GIB, MIB
from bench import measure
from bench.naive_step import NaiveStep
from bench.tables import columns, write_json
from tests.support.shapes import shape_recipe

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


@dataclass(frozen=True)
class Row:
    """One setting, done in each way; ``maps_bytes``: what the naive way's attention maps take of it, counted."""

    setting: Setting
    maps_bytes: int
    off: Way
    ours: Way
    naive: Way

    def cells(self) -> list[str]:
        """GiB needed with the allowance, then what BASIC adds to the peak."""
        ways = self.off, self.ours, self.naive
        added = [cell for way in ways[1:] for cell in (f"{way.adds_bytes / MIB:,.0f} MiB", f"{way.share:.2%}")]
        needed = [f"{way.needed_bytes / GIB:.2f} GiB" for way in ways]
        return [str(self.setting), *needed, *added, f"{self.maps_bytes / MIB:,.0f} MiB"]


HEADER = ("", "off", "ours", "naive", "ours adds", "share", "naive adds", "share", "of it maps")


def rehearse_row(setting: Setting, shapes: Path) -> Row:
    """The three ways of one setting; ``shapes``: where configurations are written on first use."""
    batch = {"micro_batch": setting.samples, "max_length": setting.tokens}
    recipe = shape_recipe(shapes, setting.size, **batch, rank=setting.rank)
    # Only eager attention hands out its maps.
    eager = changed_recipe(recipe, {"model.attention": "eager"})
    frontend, machine = load_frontend(recipe.model), Machine.card(recipe)
    ways: list[Way] = []
    for rehearsal_of in (
        partial(rehearse, recipe, frontend, machine, basic=False),
        partial(rehearse, recipe, frontend, machine),
        Rehearser(eager, frontend, machine, in_full=True, step=NaiveStep).rehearse,
    ):
        found = rehearsal_of()
        adds = found.peak_bytes - (ways[0].peak_bytes if ways else found.peak_bytes)
        sizes = found.needed_bytes, found.peak_bytes, found.forward_peak_bytes
        ways.append(Way(*sizes, adds, adds / found.peak_bytes))
    text = frontend.config.text_config
    maps = text.num_hidden_layers * setting.samples * text.num_attention_heads * setting.tokens**2
    return Row(setting, maps * machine.dtype.itemsize, *ways)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rehearse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(RESULTS.parents[2])}")
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as shapes:
        rows = [rehearse_row(setting, Path(shapes)) for setting in SETTINGS]
    print(columns(HEADER, [row.cells() for row in rows]))
    if chosen.write:
        what = "peak memory of a training step on a CUDA card with bfloat16, rehearsed on fake tensors; bytes"
        about = measure.describe(torch.device("cpu"))
        kept = {name: about[name] for name in ("versions", "commit", "date")}
        write_json(RESULTS, {"what": what, **kept, "rows": [asdict(row) for row in rows]})
        print(f"\nresults  {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
