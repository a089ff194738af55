"""docs/EVIDENCE.md from the results that there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from basic_lite.resampling import Interval
from basic_lite.training.look_lines import pull_text
from bench.evidence.intervals import over_samples, over_seeds
from bench.evidence.runs import read_results
from bench.evidence.variants import BASELINE, VARIANTS
from bench.evidence.worlds import WORLDS

HERE = Path(__file__).resolve().parent
Result = Mapping[str, Any]
# Shown as missing where there are no results; the others are shown once they have some. Their curves are shown too.
ALWAYS = ("off", "paper", "measured")
# Of the layers, at most so many are shown in a curve.
LAYERS = 5
MISSING = "missing"
TITLES = {"demo": "The demo's world", "real": "SmolLM2-135M with real pictures"}


@dataclass(frozen=True)
class Measure:
    """One column. ``samples``: values and weights of each held-out sample, [n] each; None: a number of the run."""

    title: str
    value: Callable[[Result], float]
    samples: Callable[[Result], tuple[np.ndarray, np.ndarray]] | None = None


def _loss(stage: str, key: str) -> Measure:
    def samples(result: Result) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.array(result[stage]["tokens"], float)
        return np.array(result[stage][key]) / tokens, tokens

    title = f"LM loss {stage[-1]}" + (", other picture" if "other" in key else "")
    return _mean(title, samples)


def _share(title: str, stage: str, key: str) -> Measure:
    def samples(result: Result) -> tuple[np.ndarray, np.ndarray]:
        values = np.array(result[stage][key], float)
        return values, np.ones_like(values)

    return _mean(title, samples)


def _mean(title: str, samples: Callable[[Result], tuple[np.ndarray, np.ndarray]]) -> Measure:
    return Measure(title, lambda result: float(np.average(samples(result)[0], weights=samples(result)[1])), samples)


def _number(title: str, stage: str, *path: str | int) -> Measure:
    def value(result: Result) -> float:
        found = result[stage]
        for key in path:
            found = found[key]
        return float(found)

    return Measure(title, value)


OUTCOMES = (
    _loss("stage1", "nll"),
    _loss("stage1", "nll_other_picture"),
    _share("caption F1", "stage1", "caption_f1"),
    _loss("stage2", "nll"),
    _loss("stage2", "nll_other_picture"),
    _share("exact match", "stage2", "right"),
    _share("exact match, other picture", "stage2", "right_other_picture"),
)
# What is compared with BASIC off.
COMPARED = tuple(measure for measure in OUTCOMES if "other" not in measure.title)
STATE = (
    *(_number(f"score v, {s[-1]}", s, "curve", "score", 0) for s in ("stage1", "stage2")),
    *(_number(f"score v̂, {s[-1]}", s, "curve", "score", -1) for s in ("stage1", "stage2")),
    *(_number(f"likeness of v, {s[-1]}", s, "v", "pairwise_cos") for s in ("stage1", "stage2")),
    *(_number(f"‖v‖/‖E‖, {s[-1]}", s, "v", "norm_to_vocabulary") for s in ("stage1", "stage2")),
    Measure("processor min", lambda result: sum(result[s]["cpu_s"] for s in ("stage1", "stage2")) / 60),
    Measure("wall min", lambda result: sum(result[s]["wall_s"] for s in ("stage1", "stage2")) / 60),
)


def write_page(out: Path, page: Path) -> None:
    """Write the page, and say where."""
    parts = [(HERE / "question.md").read_text(encoding="utf-8").strip()]
    for world in WORLDS:
        parts.append(f"## {TITLES[world]}")
        parts.append((HERE / f"expected_{world}.md").read_text(encoding="utf-8").strip())
        parts.append(came_out(read_results(out, world)))
        conclusion = HERE / f"conclusion_{world}.md"
        parts.append(conclusion.read_text(encoding="utf-8").strip() if conclusion.is_file() else "No conclusion yet.")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(page)


def came_out(results: Sequence[Result]) -> str:
    """Tables of one world's results: values, differences from off, the state of v, losses on the way, the gate."""
    if not results:
        return f"### What came out\n\nNo result yet: {', '.join(ALWAYS)} are missing."
    groups: dict[str, list[Result]] = {name: [] for name in ALWAYS}
    for result in results:
        groups.setdefault(result["variant"], []).append(result)
    groups = {name: groups[name] for name in VARIANTS if name in groups}
    parts = ["### What came out", _made(results), _values(groups, OUTCOMES), "### Differences from BASIC off"]
    parts += [_differences(groups), seed_by_seed(groups)]
    parts += ["### The visual embeddings", _values(groups, STATE), "### Held-out loss on the way"]
    parts += [_on_the_way(groups, stage) for stage in ("stage1", "stage2")]
    parts += ["### The refinement curve, before, during and after", curves(groups)]
    if gates := list(_gates(results)):
        parts += ["### The gate", "\n".join(gates)]
    return "\n\n".join(parts)


def _made(results: Sequence[Result]) -> str:
    commits = sorted({str(result["made"]["commit"])[:12] for result in results})
    days = sorted(result["made"]["date"][:10] for result in results)
    return (
        f"{len(results)} runs of commits {', '.join(commits)}, {days[0]} to {days[-1]}, {results[0]['made']['device']}."
    )


def _values(groups: Mapping[str, Sequence[Result]], measures: Sequence[Measure]) -> str:
    rows = [["variant", "seeds", *(measure.title for measure in measures)]]
    for name, results in groups.items():
        cells = [_spread([measure.value(result) for result in results]) for measure in measures]
        rows.append([name, str(len(results)), *cells] if results else [name, MISSING])
    return _table(rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _differences(groups: Mapping[str, Sequence[Result]]) -> str:
    """Each variant less off, over the seeds that both have: an interval over seeds, and one over held-out samples."""
    base = {result["seed"]: result for result in groups[BASELINE]}
    rows = [["variant", "interval over", *(measure.title for measure in COMPARED)]]
    for name, results in groups.items():
        pairs = [(result, base[result["seed"]]) for result in results if result["seed"] in base]
        if name == BASELINE:
            continue
        if not pairs:
            rows.append([name, MISSING])
            continue
        seeds = [over_seeds([m.value(a) - m.value(b) for a, b in pairs]).text() for m in COMPARED]
        rows += [
            [name, f"{len(pairs)} seed{'s' * (len(pairs) > 1)}", *seeds],
            ["", "samples", *(_by_sample(pairs, m) for m in COMPARED)],
        ]
    return _table(rows) + "\n\n\\* the interval of 95 % leaves 0 out."


def seed_by_seed(groups: Mapping[str, Sequence[Result]]) -> str:
    """LM loss less that of off with the same seed, after each stage."""
    base = {result["seed"]: result for result in groups[BASELINE]}
    losses = [measure for measure in COMPARED if measure.title.startswith("LM loss")]
    rows = [["variant", *(f"{measure.title}, seed {seed}" for measure in losses for seed in sorted(base))]]
    for name, results in groups.items():
        found = {result["seed"]: result for result in results}
        if name == BASELINE or not found:
            continue
        rows.append([name])
        for measure in losses:
            for seed in sorted(base):
                less = measure.value(found[seed]) - measure.value(base[seed]) if seed in found else None
                rows[-1].append("–" if less is None else f"{less:+.3f}")
    return "The same seed by seed:\n\n" + _table(rows)


def _by_sample(pairs: Sequence[tuple[Result, Result]], measure: Measure) -> str:
    assert measure.samples is not None
    differences = np.mean([measure.samples(a)[0] - measure.samples(b)[0] for a, b in pairs], axis=0)
    return over_samples(differences, measure.samples(pairs[0][0])[1]).text()


def curves(groups: Mapping[str, Sequence[Result]]) -> str:
    """Scores at v, some layers and v̂: a run's first, middle and last curve, and that of the held-out samples after it.

    ``off`` measures none while it trains. A step that not all seeds have is left out.
    """
    some = next(result["stage1"]["curve"] for results in groups.values() for result in results)
    layers = np.linspace(1, len(some["places"]) - 2, min(LAYERS, len(some["places"]) - 2)).round().astype(int).tolist()
    rows = [["variant", "stage", "step", "samples", "v", *(some["places"][h] for h in layers), "v̂"]]
    for name in ALWAYS:
        for stage in ("stage1", "stage2") if groups[name] else ():
            logs = [
                {x["step"]: x["refinement"] for x in one[stage]["log"] if "refinement" in x} for one in groups[name]
            ]
            steps = sorted(set.intersection(*map(set, logs)))
            chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
            curves = [(str(step), [log[step] for log in logs]) for step in chosen]
            for step, found in [*curves, ("after", [one[stage]["curve"] for one in groups[name]])]:
                cells = [_spread([curve["score"][at] for curve in found]) for at in (0, *layers, -1)]
                rows.append([name, stage[-1], step, str(found[0]["samples"]), *cells])
    return _table(rows)


def _gates(results: Sequence[Result]) -> Iterator[str]:
    """What each run's gate found: step, open or shut, the scores of v and v̂ there, and what a tried pull did."""
    for result in results:
        for stage in ("stage1", "stage2"):
            looks = [(line["step"], line["gate"]) for line in result[stage]["log"] if "open" in line.get("gate", {})]
            if looks:
                found = ", ".join(f"{step}: {_look(gate)}" for step, gate in looks)
                yield f"- {result['variant']}, seed {result['seed']}, stage {stage[-1]}: {found}"


def _look(gate: Mapping[str, Any]) -> str:
    change = gate.get("loss_change")
    tried = "" if change is None else f"; the pull changes the loss by {pull_text(Interval(*change))}"
    return f"{'open' if gate['open'] else 'shut'} ({gate['v']:+.3f} → {gate['target']:+.3f}{tried})"


def _on_the_way(groups: Mapping[str, Sequence[Result]], stage: str) -> str:
    found: dict[str, dict[int, list[float]]] = {}
    for name, results in groups.items():
        found[name] = defaultdict(list)
        for result in results:
            for line in result[stage]["log"]:
                if "eval_loss" in line:
                    found[name][line["step"]].append(line["eval_loss"])
    steps = sorted({step for by_step in found.values() for step in by_step})
    rows = [[f"stage {stage[-1]}, step", *map(str, steps)]]
    rows += [
        [name, *(_spread(by_step[step]) for step in steps)] if by_step else [name] for name, by_step in found.items()
    ]
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; a short row is filled with dashes."""
    width = len(rows[0])
    lines = ["| " + " | ".join([*row, *["–"] * (width - len(row))]) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]])
