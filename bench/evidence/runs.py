"""Train and measure variants with seeds: one JSON file each, and what is done is not done again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from basic_lite.errors import UserError
from basic_lite.recipe.schema import Recipe
from basic_lite.run import run_stage
from bench.evidence.measure import CPU, measured
from bench.evidence.variants import VARIANTS
from bench.evidence.worlds import STAGES, EvidenceWorld, quiet, work_folder
from bench.measure import describe

# Of a log line: how fast it went, which says nothing of the method.
_SPEED = ("tokens_per_s", "step_s", "peak_memory_gib", "epoch")


def run_all(world: EvidenceWorld, variants: Sequence[str], seeds: int, out: Path) -> None:
    """Every variant with every seed that has no result yet; a seed is finished before the next begins.

    Raises:
        UserError: a variant that there isn't, keys that this version doesn't have, or results of another set-up.
    """
    torch.set_num_threads(1)
    setup = world.setup()
    work = work_folder(world, setup)
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"--variants: {name!r} is none of {', '.join(VARIANTS)}")
        # All of them are read before the first is run: an unknown key must not stop a night's work.
        for stage in STAGES:
            world.recipe(stage, work, VARIANTS[name], 0)
    for seed in range(seeds):
        for name in variants:
            path = result_path(out, world.name, name, seed)
            if path.is_file():
                require_same_setup(path, setup)
                print(f"{path.name}: done before", flush=True)
                continue
            try:
                with FileLock(work / f"{path.stem}.lock", timeout=0):
                    result = run_one(world, name, seed, work / path.stem)
            except Timeout:
                print(f"{path.name}: another process works on it", flush=True)
                continue
            _write(path, {**result, "setup": setup, "made": describe(CPU)})
            shutil.rmtree(work / path.stem, ignore_errors=True)
            print(f"{path.name}: {sum(result[f'stage{stage}']['wall_s'] for stage in STAGES) / 60:.1f} min", flush=True)


def run_one(world: EvidenceWorld, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Both stages of one variant with one seed, and what is measured after each."""
    result: dict[str, Any] = {"world": world.name, "variant": variant, "seed": seed}
    result["overrides"] = dict(VARIANTS[variant])
    for stage in STAGES:
        recipe = world.recipe(stage, folder, VARIANTS[variant], seed)
        wall, cpu = time.perf_counter(), time.process_time()
        run_stage(recipe, replace=True, console=quiet())
        run = Path(recipe.output) / recipe.name
        times = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
        found = measured(run, recipe, world)
        times["measuring_cpu_s"] = round(time.process_time() - cpu - times["cpu_s"], 1)
        result[f"stage{stage}"] = {**times, **_short(found), "log": list(_log(run, recipe))}
    return result


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """In one line, since most of it is long lists; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def _log(run: Path, recipe: Recipe) -> Iterator[Mapping[str, Any]]:
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        yield {key: _short(value) for key, value in json.loads(line).items() if key not in _SPEED}


def _short(value: Any) -> Any:
    """Numbers at five digits that count; a result is read by people and kept for good."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_short(one) for one in value]
    return {key: _short(one) for key, one in value.items()} if isinstance(value, dict) else value


def result_path(out: Path, world: str, variant: str, seed: int) -> Path:
    return out / world / f"{variant}_{seed}.json"


def require_same_setup(path: Path, setup: Mapping[str, Any]) -> None:
    """Refuse to put results of two set-ups beside each other.

    Raises:
        UserError: the file has another one.
    """
    before = json.loads(path.read_text(encoding="utf-8"))["setup"]
    now = json.loads(json.dumps(setup))
    if before != now:
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        raise UserError(
            f"{path} was made with another set-up ({', '.join(keys)} differ), so new results can't stand beside it; "
            "choose another --out, or delete the old results"
        )


def read_results(out: Path, world: str) -> list[dict[str, Any]]:
    """All results of a world, by variant and seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / world).glob("*.json"))]
    order = list(VARIANTS)
    return sorted(rows, key=lambda row: (order.index(row["variant"]), row["seed"]))
