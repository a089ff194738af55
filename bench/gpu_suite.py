"""Everything that only a GPU can say, in one command, in at most 8 minutes, without a download.

    python -m bench.gpu_suite --out DIR

It is run from the repository's root. The project need not be installed: its packages are found from there. What they
need must be (pyproject.toml), and the suite says what is missing before it starts.

1. races: each kernel many times on the same inputs, bit for bit, with memory poisoned in between and other work
   beside it;
2. tests: the kernels' test files, un-interpreted;
3. bench: `pytest bench/`: time, memory, % of the floors, beside other people's kernels;
4. 7b_qlora, 7b_8gb: the training steps of these recipes on a model of random weights, limited to 24 and to 8 GiB of the
   card: predicted and measured memory, tokens/s, BASIC on and off, the kernels' share of a step (`bench.step_suite`).

DIR gets suite.json (what ran, how long, how it ended), a log of each step, the JSON of each training step, the JSON
and the plot of the bench, and results.tar, which holds them all. The first and the last are written anew after
each step. Each step has the time that is left, less what is kept for those after it. A step that runs out of time is
cut off and said so; the others still run. Exit 0 only where all passed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds for the steps altogether: half a minute of the eight is left for starting up.
ALL_S = 450
# Seconds that are kept for each step; what is left over goes to the first that needs it. Of a training step's, some 30
# are expected to go into its start: imports, a rehearsal, a model of 6.7 billion weights drawn, quantised and adapted.
RACES_S, TESTS_S, BENCH_S = 40, 120, 100
# Recipe → GiB of the card, seconds. The larger one's batch takes a 3090 some 14 s forward and backward, by its FLOPs.
TRAINING = {"7b_qlora": (24, 120), "7b_8gb": (8, 60)}
# The most seconds that one which ran out of time may take to write what it has. A training step begins nothing that
# would end later than this before its time is up.
STOP_S = 15
# A kernel's test file has the kernel's name somewhere in its own.
KERNELS = ("direction_loss", "row_scaling", "vocab_kl", "attention_mass")
# What pyproject.toml lists and no step here uses. Liger-Kernel is measured beside ours where it is installed.
UNUSED = {"typer", "tensorboard", "sentencepiece", "protobuf", "liger-kernel", "ruff", "mypy", "setuptools"}
# Where the packages lie that need not be installed.
PACKAGES = [str(ROOT), str(ROOT / "kernels")]


@dataclass(frozen=True)
class Step:
    """How one step ended. ``outcome``: passed, failed, out of time."""

    name: str
    command: list[str]
    outcome: str
    exit_code: int | None
    seconds: float
    last_lines: list[str]


def missing(version_of: Callable[[str], str] = importlib.metadata.version) -> list[str]:
    """What has to be installed for the suite, a line each; ``version_of`` raises for what isn't there."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        if wanted.name in UNUSED or (wanted.marker and not wanted.marker.evaluate()):
            continue
        try:
            version = version_of(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{wanted.name} isn't installed; {wanted.name}{wanted.specifier} is needed")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{wanted.name} {version} is installed; {wanted.name}{wanted.specifier} is needed")
    return found


def obstacles() -> list[str]:
    """Why the suite can't start here, a line each."""
    if found := missing():
        return found
    import torch

    if torch.cuda.is_available():
        return []
    return [
        "the suite needs a GPU, and torch sees none (torch.cuda.is_available() is false); "
        "`python -m pytest bench/` measures what a CPU can"
    ]


def kernel_tests() -> list[str]:
    files = {path for kernel in KERNELS for path in (ROOT / "tests").rglob(f"test_*{kernel}*.py")}
    return sorted(str(path.relative_to(ROOT)) for path in files)


def plan(folder: Path) -> list[tuple[str, list[str], int]]:
    """Name, command and kept seconds of each step."""
    python = [sys.executable, "-m"]
    quiet = ["-q", "-p", "no:cacheprovider"]
    steps = [
        ("races", [*python, "pytest", *quiet, "--numprocesses=0", "tests/kernels/test_races.py"], RACES_S),
        ("tests", [*python, "pytest", *quiet, "--numprocesses=0", *kernel_tests()], TESTS_S),
        ("bench", [*python, "pytest", *quiet, "bench/", "--results-dir", str(folder)], BENCH_S),
    ]
    for recipe, (limit_gib, seconds) in TRAINING.items():
        options = ["--limit-gib", str(limit_gib), "--out", str(folder / f"step_{recipe}.json")]
        steps.append((recipe, [*python, "bench.step_suite", recipe, *options], seconds))
    return steps


def run_step(name: str, command: list[str], seconds: float, folder: Path) -> Step:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    environment["PYTHONPATH"] = os.pathsep.join([*PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.monotonic()
    log = folder / f"{name}.log"
    print(f"── {name}: {' '.join(command)}", flush=True)
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # As Ctrl-C would: pytest and the training step then still write what they have.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    outcome = "out of time" if code is None else "passed" if code == 0 else "failed"
    step = Step(name, command, outcome, code, round(time.monotonic() - started, 1), text.splitlines()[-25:])
    print(text if name in ("bench", *TRAINING) else "\n".join(step.last_lines[-6:]), flush=True)
    print(f"── {name}: {outcome}, {step.seconds:.0f} s", flush=True)
    return step


def write_results(folder: Path, about: dict[str, Any], seconds: float, steps: list[Step]) -> Path:
    """suite.json of the steps that have ended, and results.tar of all that ``folder`` has, whose path is returned."""
    result = {**about, "seconds": round(seconds, 1), "steps": [asdict(step) for step in steps]}
    (folder / "suite.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    packed = folder / "results.tar"
    with tarfile.open(packed, "w") as tar:
        for path in sorted(folder.iterdir()):
            if path != packed:
                tar.add(path, path.name)
    return packed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, and results.tar with them all")
    options = parser.parse_args(arguments)
    sys.path[:0] = PACKAGES
    found = obstacles()
    if found:
        print("bench.gpu_suite can't start, nothing was run:", *found, sep="\n  ", file=sys.stderr)
        return 2
    import torch

    from bench import measure

    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    about = measure.describe(torch.device("cuda"))
    started = time.monotonic()
    steps: list[Step] = []
    todo = plan(folder)
    for earlier in folder.glob("step_*.json"):  # of another suite
        earlier.unlink()
    for place, (name, command, _) in enumerate(todo):
        kept_s = sum(seconds for _, _, seconds in todo[place + 1 :])
        seconds = ALL_S - (time.monotonic() - started) - kept_s
        if name in TRAINING:
            command = [*command, f"--seconds={seconds - STOP_S:.0f}"]
        steps.append(run_step(name, command, seconds, folder))
        packed = write_results(folder, about, time.monotonic() - started, steps)
    for step in steps:
        print(f"{step.name:8} {step.outcome:12} {step.seconds:6.1f} s")
    print(f"results  {packed}")
    return 0 if all(step.outcome == "passed" for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
