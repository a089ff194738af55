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
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"--variants: {name!r} is none of {', '.join(VARIANTS)}")
        # All of them are read before the first is run: an unknown key must not stop a night's work.
        for stage in STAGES:
            world.recipe(stage, Path("runs"), VARIANTS[name], 0)
    for seed in range(seeds):
        setup = world.setup(seed)
        require_same_setup(out / world.name, seed, setup)
        work = work_folder(world, setup)
        for name in variants:
            path = result_path(out, world.name, name, seed)
            if path.is_file():
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


def require_same_setup(folder: Path, seed: int, setup: Mapping[str, Any]) -> None:
    """Refuse to put results of two set-ups beside each other. The start is fitted anew for each seed.

    Raises:
        UserError: a result in the folder has another one.
    """
    now = _flat(setup)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        before = _flat(result["setup"])
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if result["seed"] != seed:
            keys = [key for key in keys if key != "start"]
        if keys:
            found = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys)
            raise UserError(
                f"{path} was made with another set-up ({found}), so new results can't stand beside it. Choose another "
                "--out, delete the old results, or take the versions and the kind of processor that they name (another "
                "Pillow draws other pictures; a processor without AVX-512 fits another start, by rounding)."
            )


def _flat(setup: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage1.steps": 160, …}, as JSON reads it back."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(setup)).items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def read_results(out: Path, world: str) -> list[dict[str, Any]]:
    """All results of a world, by variant and seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / world).glob("*.json"))]
    order = list(VARIANTS)
    return sorted(rows, key=lambda row: (order.index(row["variant"]), row["seed"]))
