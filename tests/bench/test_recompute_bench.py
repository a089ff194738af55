"""The bench of recomputed layers runs, and finds the same bits whatever their number."""

from __future__ import annotations

from bench.bench_step import SHAPES
from bench.recompute import compare


def test_it_runs_on_toy_shapes() -> None:
    lines: list[str] = []
    ratios = compare(SHAPES["tiny"][0], lines.append)
    assert list(ratios) == [4, 2, 0] and set(ratios[4]) == {1.0} and len(ratios[0]) >= 3
    products = [float(line.split("|")[4]) for line in lines[3:]]
    assert products[0] == 1.0 > products[1] > products[2] > 0.6
