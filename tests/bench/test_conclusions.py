"""The differences seed by seed that a conclusion of bench/evidence names are those of the results."""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest

from bench.evidence.report import OUTCOMES
from bench.evidence.runs import read_results

ROOT = Path(__file__).resolve().parents[2]
# Of three seeds, in three digits: "+.017, +.092 and −.553".
SEEDS = re.compile(r"([+−]\d?\.\d{3}),\s+([+−]\d?\.\d{3})\s+and\s+([+−]\d?\.\d{3})(?!\d)")
LOSSES = [measure for measure in OUTCOMES if measure.title in ("LM loss 1", "LM loss 2")]


@cache
def differences() -> set[tuple[str, ...]]:
    """LM loss of each variant less that of each other one, with three seeds, after each stage."""
    results = {(row["variant"], row["seed"]): row for row in read_results(ROOT / "bench/results/evidence", "real")}
    full = [name for name, seed in results if seed == 2 and (name, 0) in results and (name, 1) in results]
    return {
        tuple(f"{m.value(results[a, seed]) - m.value(results[b, seed]):+.3f}" for seed in range(3))
        for a, b in permutations(full, 2)
        for m in LOSSES
    }


def named(text: str) -> list[tuple[str, ...]]:
    """Those that a text names, as ("+0.017", "+0.092", "-0.553")."""
    found = [[float(value.replace("−", "-")) for value in values] for values in SEEDS.findall(text)]
    return [tuple(f"{value:+.3f}" for value in values) for values in found]


def test_differences_seed_by_seed_are_those_of_the_results() -> None:
    found = named((ROOT / "bench/evidence/conclusion_real.md").read_text(encoding="utf-8"))
    assert len(found) >= 6 and not set(found) - differences()


@pytest.mark.parametrize("text", ["+1.660, +.026 and −.536", "+.017, +.092\n  and −.554"])
def test_a_wrong_difference_is_found(text: str) -> None:
    assert len(named(text)) == 1 and not set(named(text)) & differences()
