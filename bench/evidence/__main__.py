"""Does BASIC help? Off, as in the paper, and measured, on two worlds, with several seeds and both stages.

    python -m bench.evidence demo --seeds 5 --variants off,paper,measured
    python -m bench.evidence real --seeds 3 --variants off,paper,measured
    python -m bench.evidence report

Each variant and seed is one JSON file below --out. What is there is not made again, and a run that was stopped goes on
where it was. Several calls may work side by side. `report` writes docs/EVIDENCE.md from what there is; what is missing
is shown as missing. The real world needs ``pip install ".[real]"`` and packages of Debian.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from basic_lite.console import quiet_libraries
from basic_lite.errors import UserError
from bench.evidence.report import write_page
from bench.evidence.runs import run_all
from bench.evidence.worlds import WORLDS
from bench.world.packages import Unavailable

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=[*WORLDS, "report"])
    parser.add_argument("--variants", default="off,paper", help="names of bench/evidence/variants.py, with commas")
    parser.add_argument("--seeds", type=int, default=3, help="0 to N - 1")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/evidence", help="folder of the results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/EVIDENCE.md", help="what `report` writes")
    parser.add_argument("--tiny", action="store_true", help="a few steps: does it still run?")
    given = parser.parse_args(arguments)
    quiet_libraries()
    try:
        if given.what == "report":
            write_page(given.out, given.page)
        else:
            run_all(WORLDS[given.what](tiny=given.tiny), given.variants.split(","), given.seeds, given.out)
    except (UserError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
