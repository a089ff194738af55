"""A real run, exported, with its own answers: what the tests of every tower and program start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from basic_lite.training.files import write_json
from bench.world.packages import Unavailable, cache_folder
from bench.world.stamps import pictures
from tests.support.answers import Answer, Compared, Prompt, compare, our_answers, prompts_of, table
from tests.support.programs import require
from tests.support.real_runs import Tower, exported, real_run


@dataclass(frozen=True)
class Served:
    """Prompts are the held-out questions, then the same ones with another picture.

    Attributes:
        folder: the exported llava-hf folder, with GGUF files in f16 below `gguf`.
        scratch: an empty folder.
    """

    tower: Tower
    folder: Path
    scratch: Path
    prompts: list[Prompt]
    ours: list[Answer]

    def compared(self, program: str, answers: Sequence[Answer], because: str = "") -> Compared:
        """Compare a program's answers with ours; the result is printed, and kept as JSON in the cache."""
        found = compare(program, self.ours, answers, because)
        print(table(f"SmolLM2, {self.tower} tower, beside the trained model", [found]))
        folder = cache_folder() / "results"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{self.tower} {program}.json", asdict(found))
        return found


def serve(tower: Tower, scratch: Path) -> Served:
    """Train or take the run, export it, and ask it. Skips the test where the model or the pictures can't be had."""
    require("gguf")
    require("xllamacpp")
    try:
        run = real_run(tower)
    except Unavailable as reason:
        pytest.skip(str(reason))
    folder = exported(run, scratch / "export", "--gguf")
    prompts = prompts_of(pictures()) + prompts_of(pictures(), swapped=True)
    return Served(tower, folder, scratch, prompts, our_answers(run, prompts, len(prompts) // 2))
