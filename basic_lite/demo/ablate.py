"""``basic-lite demo --ablate``: BASIC off, DAS alone, SDS alone and both, over several seeds; whatever comes out."""

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from basic_lite.console import Sheet, show
from basic_lite.demo.place import CPU, EVAL_BATCH, Place, caption_score, logged, run_stage
from basic_lite.tools.evaluate import evaluate
from basic_lite.tools.score import ALL
from basic_lite.training.bundle import load_trained
from basic_lite.training.files import write_json

VARIANTS: dict[str, dict[str, Any]] = {
    "BASIC off": {"supervision__enabled": False},
    "DAS": {"supervision__lambda_sds": 0.0},
    "SDS": {"supervision__lambda_das": 0.0},
    "DAS + SDS": {},
}
MEASURES = {
    "stage1_lm": "LM loss, end of stage 1",
    "caption_f1": "caption F1 after stage 1",
    "stage2_lm": "LM loss, end of stage 2",
    "exact_match": "exact match after stage 2",
}
# Log lines at the end of a stage whose LM loss is averaged.
LAST_LINES = 5


def ablation(place: Place, seeds: int, console: Console) -> None:
    """Train every variant with every seed, print mean ± standard deviation, write ``ablation.json``.

    The world is the same throughout; the seed changes initial weights, the samples' order and dropout.
    """
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(seeds):
        for name, changes in VARIANTS.items():
            seed = place.seed + number
            folder = place.out / "ablation" / f"{name.lower().replace(' ', '_').replace('+', 'and')}_{seed}"
            console.rule(f"[bold]{name}, seed {seed}", align="left")
            results[name].append(_one(place, folder, changes | {"seed": seed}, console))
            console.print(", ".join(f"{text} {results[name][-1][key]:.3f}" for key, text in MEASURES.items()))
    write_json(place.out / "ablation" / "ablation.json", {"seeds": seeds, "results": results})
    show(console, _table(results, seeds))
    console.print(f"all values: {place.out / 'ablation' / 'ablation.json'}", soft_wrap=True)


def _one(place: Place, folder: Path, changes: dict[str, Any], console: Console) -> dict[str, float]:
    one, two = (place.recipe(stage, folder, **changes) for stage in (1, 2))
    run_stage(one, console)
    run_stage(two, console)
    first, _ = load_trained(folder / "stage1", CPU)
    second, _ = load_trained(folder / "stage2", CPU)
    answers = evaluate(second, two, place.records(place.world.eval), batch_size=EVAL_BATCH)
    return {
        "stage1_lm": _last_lm(folder / "stage1"),
        "caption_f1": caption_score(first, one, place),
        "stage2_lm": _last_lm(folder / "stage2"),
        "exact_match": answers.accuracy[ALL],
    }


def _last_lm(run: Path) -> float:
    return statistics.fmean(logged(run, "lm")[-LAST_LINES:])


def _table(results: dict[str, list[dict[str, float]]], seeds: int) -> Sheet:
    table = Sheet(("", *results), f"mean ± standard deviation over {seeds} seed(s)")
    for key, text in MEASURES.items():
        cells = []
        for runs in results.values():
            values = [run[key] for run in runs]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        table.add(text, *cells)
    return table
