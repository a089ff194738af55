"""Time of a training step by how many of the LLM's layers it recomputes: ``python -m bench.recompute``.

One process, the mid-size model of ``bench_step`` with BASIC on; steps with all, half and none of its layers recomputed
take turns. A ratio is of two steps of one round, and the interval that of the rounds' mean.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from basic_lite.console import quiet_libraries
from basic_lite.model.adapt import recompute
from basic_lite.recipe.rules import changed_recipe
from bench import measure
from bench.bench_step import ON, SHAPES, Case, ThreeWays
from bench.evidence.intervals import over_seeds
from bench.flops import flops_of

CPU = torch.device("cpu")


def compare(case: Case, say: Callable[[str], object] = print) -> dict[int, list[float]]:
    """Print a table of steps with all, half and none of the layers recomputed.

    Returns:
        Recomputed layers → each round's time over that of all layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = case.recipe(Path(folder), CPU)
        ways = ThreeWays(recipe, CPU)
    layers = len(ways.parts.layers)
    counts = (layers, layers // 2, 0)

    def run(count: int) -> None:
        recompute(ways.parts, count)
        ways.run(ON)

    # Right first: no number changes a bit. The step after it makes the optimizer's state.
    found = []
    for count in counts:
        recompute(ways.parts, count)
        found.append(ways.gradient(ON))
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(found[0], pair, strict=True)), (
        "not the same bits"
    )
    run(layers)

    peaks = {count: measure.peak_bytes(partial(run, count), CPU) for count in counts}
    runs = measure.take_turns({str(count): partial(run, count) for count in counts}, CPU, case.seconds)
    ratios = {n: [a / b for a, b in zip(runs[str(n)], runs[str(layers)], strict=True)] for n in counts}
    changed = {n: changed_recipe(recipe, {"training.gradient_checkpointing": n}) for n in counts}
    products = {n: sum(flops_of(changed[n], ways.longest).values()) for n in counts}
    say(f"{case}; {len(runs[str(layers)])} rounds")
    say("| recomputed layers | p50 ms | ÷ all, mean and 95 % | products ÷ all | peak MiB beside weights |")
    say("|---|---|---|---|---|")
    for n in counts:
        mean = over_seeds(ratios[n])
        say(
            f"| {n} | {statistics.median(runs[str(n)]):.0f} | {mean.mean:.3f} ({mean.low:.3f} to {mean.high:.3f}) | "
            f"{products[n] / products[layers]:.3f} | {peaks[n] / 2**20:.1f} |"
        )
    return ratios


def main() -> None:
    """Print the table."""
    quiet_libraries()
    torch.set_num_threads(1)
    compare(SHAPES["cpu"][0])


if __name__ == "__main__":
    main()
