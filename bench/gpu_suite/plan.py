"""The steps of the three runs, with their limits: first what must be right, then what decides most."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

from bench.gpu_suite.needs import ROOT
from bench.gpu_suite.running import Step

RUNS = ("first", "second", "third")
# A kernel's test file has the kernel's name somewhere in its own.
KERNELS = ("direction_loss", "row_scaling", "vocab_kl", "attention_mass")
# Recipe → GiB of its card, seconds. Some 40 of these go into imports, two rehearsals, and a model of 6.7 billion
# weights that is drawn, quantised and adapted.
TRAINING = {"7b_qlora": (24, 110), "7b_8gb": (8, 75)}
# Layers that the planner recomputes for these cards, with a micro-batch of 1; a soak test asks it. Finding them on the
# card would take half a minute of its time.
PLANNED = {"7b_qlora": 0, "7b_8gb": 29}
# Of a model with a large vocabulary (V 152,064), whose SDS takes so many of a sample's 576 visual tokens.
LARGE_VOCABULARY, SDS_TOKENS = "7b-152k", 64
LARGE_VOCABULARY_S = 105
# A step of a dry run may take so long.
DRY_S = 900
# Tests that are too long for a plain run on two cores aren't too long here.
PYTEST = ["pytest", "-q", "-p", "no:cacheprovider", "--dist=worksteal", "-m", "not soak"]

# The second runs the first's tests where there is no GPU (a dry run); with one it skips.
SUPERVISION_TESTS = ("tests/supervision/test_supervision_kernels.py", "tests/kernels/test_interpreted.py")


def kernel_tests() -> list[str]:
    """The test files of the kernels."""
    files = {path for kernel in KERNELS for path in (ROOT / "tests").rglob(f"test_*{kernel}*.py")}
    files |= {ROOT / "tests" / "kernels" / "test_operations.py"}
    return sorted(str(path.relative_to(ROOT)) for path in files)


def stages_of(
    runs: list[str] | tuple[str, ...], work: Path, *, dry: bool, only: list[str] | None = None
) -> list[list[Step]]:
    """The stages of some runs in their order; steps of one stage run side by side.

    Args:
        work: where the steps write.
        dry: at toy sizes, on a CPU; there in turn, with more time.
        only: leave out all other steps.
    """
    programs = {"first": first, "second": second, "third": third}
    stages = [stage for name in RUNS if name in runs for stage in programs[name](work, ["--dry"] if dry else [])]
    if dry:
        stages = [[replace(step, seconds=DRY_S)] for stage in stages for step in stage]
    chosen = [[step for step in stage if only is None or step.name in only] for stage in stages]
    return [stage for stage in chosen if stage]


def first(work: Path, dry: list[str]) -> list[list[Step]]:
    """Is it right, does it fit, how fast is it? Ten minutes at most."""
    # Most of the kernels' time goes into compiling, which other steps of the stage do too.
    workers = ["-n", str(max(1, min(8, (os.cpu_count() or 1) - 4)))]
    ours = "bench.gpu_suite"
    right = [
        Step("kernels", [*PYTEST, *workers, *kernel_tests()], 150),
        Step("races", [f"{ours}.races", "--out", str(work / "races.json"), *dry], 150),
        Step("supervision", [*PYTEST, "-n", "1", *SUPERVISION_TESTS], 150),
        Step("demo", [f"{ours}.short_demo", "--out", str(work / "demo.json"), *dry], 150),
    ]
    rest = ["--seconds", "SECONDS", *dry]
    steps = [
        Step(recipe, [*training(recipe, gib, work, [] if dry else planned(recipe)), *rest], seconds)
        for recipe, (gib, seconds) in TRAINING.items()
    ]
    # A toy has 16 visual tokens, and a vocabulary of its own.
    sampled = (
        ["supervision.sds_tokens=4"] if dry else [f"supervision.sds_tokens={SDS_TOKENS}", "training.micro_batch=1"]
    )
    shape = [] if dry else ["--shape", LARGE_VOCABULARY]
    large = [*training("7b_qlora", 24, work, sampled, "large_vocabulary"), *shape, *rest]
    steps.append(Step("large_vocabulary", large, LARGE_VOCABULARY_S))
    return [
        [Step("ceilings", [f"{ours}.ceilings", "--out", str(work / "ceilings.json"), *dry], 30)],
        right,
        *[[step] for step in steps],
        [Step("profile", [f"{ours}.profiled", "7b_qlora", "--out", str(work / "profile.json"), *dry], 75)],
    ]


def training(recipe: str, gib: float, work: Path, keys: list[str], name: str = "") -> list[str]:
    """The program that measures a recipe's training step. Keys stand right behind the recipe, or argparse misses them.

    Args:
        name: of the step; by default the recipe's.
    """
    out = work / f"step_{name or recipe}.json"
    return ["bench.step_suite", recipe, *keys, "--limit-gib", f"{gib:g}", "--out", str(out)]


def planned(recipe: str) -> list[str]:
    """The plan of a recipe as keys. A toy has fewer layers."""
    return ["training.micro_batch=1", f"training.gradient_checkpointing={PLANNED[recipe]}"]


def second(work: Path, dry: list[str]) -> list[list[Step]]:
    """What the planner believes, and each operation beside other people's. Four minutes at most."""
    variants, rest = ["bench.gpu_suite.variants", "7b_qlora"], ["--seconds", "SECONDS", *dry]
    plain = ["training.use_liger_kernel=false", "--recompute", "all"]
    tiny = ["--tiny"] if dry else []
    return [
        [Step("variants", [*variants, "--out", str(work / "variants.json"), *rest], 85)],
        [Step("liger_off", [*variants, *plain, "--out", str(work / "liger_off.json"), *rest], 50)],
        [Step("operations", [*PYTEST, "-n", "0", "bench/", "--results-dir", str(work), *tiny], 90)],
    ]


def third(work: Path, dry: list[str]) -> list[list[Step]]:
    """Beside TRL's SFTTrainer, where it is installed. Three minutes at most."""
    if importlib.util.find_spec("trl") is None:
        print("── beside_trl: left out, since TRL isn't installed (it is no dependency)", flush=True)
        return []
    tiny = ["--tiny"] if dry else []
    return [[Step("beside_trl", ["bench.beside_trl", "--out", str(work), *tiny], 170)]]
