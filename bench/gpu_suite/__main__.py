"""Everything that only a GPU can say, in one command, without a download.

    python -m bench.gpu_suite --out DIR                all of it, some 17 minutes at most
    python -m bench.gpu_suite --out DIR --run first    or one run after another: first, second, third
    python -m bench.gpu_suite --out DIR --dry          the same programs on a CPU, at toy sizes

It is run from the repository's root. The project need not be installed: its packages are found from there. What a
machine lacks can travel as wheels in the folder .whl, which are unpacked into .site. What is still missing is said
before anything starts.

DIR gets suite.json (what ran, how long, how it ended) and results.tar: suite.json, a log of each step, and the JSON and
plots that it wrote. Both are written anew after each step. Each step is a process of its own with a time limit; one
that is cut off is said so, and the others still run. Exit 0 only where all passed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.gpu_suite.needs import SITE, WHEELS, missing, notes, paths, unpack
from bench.gpu_suite.plan import RUNS, stages_of
from bench.gpu_suite.running import RESULTS, Suite


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for suite.json and results.tar")
    parser.add_argument("--run", choices=RUNS, action="append", help="a part of it; all, if none is named")
    parser.add_argument("--only", action="append", metavar="STEP", help="only this step; may be given several times")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy sizes: does every step run?")
    options = parser.parse_args(arguments)
    if (options.out / RESULTS).exists():
        parser.error(f"{options.out} holds the results of another run; name another folder")
    if problem := unpack():
        print(f"bench.gpu_suite can't start: {WHEELS} could not be unpacked into {SITE}:\n{problem}", file=sys.stderr)
        return 2
    sys.path[:0] = [path for path in paths() if path not in sys.path]
    if found := missing() + (no_gpu() if not options.dry else []):
        print("bench.gpu_suite can't start, nothing was run:", *found, sep="\n  ", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="basic-lite-suite-") as work:
        suite = Suite(options.out, Path(work), about(options.dry) | {"notes": notes()})
        for stage in stages_of(options.run or RUNS, Path(work), dry=options.dry, only=options.only):
            suite.run(stage)
        print(suite.table())
    return 0 if suite.passed else 1


def no_gpu() -> list[str]:
    """Why the suite can't measure here, a line; none where it can."""
    import torch

    if torch.cuda.is_available():
        return []
    return [
        "the suite needs a GPU, and torch sees none (torch.cuda.is_available() is false); "
        "`python -m pytest bench/` measures what a CPU can, and --dry shows that every step runs"
    ]


def about(dry: bool) -> dict[str, object]:
    """Where and with what it runs."""
    import torch

    from bench import measure

    return measure.describe(torch.device("cpu" if dry else "cuda")) | {"dry": dry}


if __name__ == "__main__":
    sys.exit(main())
