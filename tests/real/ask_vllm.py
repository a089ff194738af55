"""vLLM answers beside us: python -m tests.real.ask_vllm PYTHON_OF_VLLM OUT.json. `.ci/vllm` makes its environment.

Both trained towers with SmolLM2, against the trained model's own answers; and tiny random language models of other
families with a SigLIP tower, against plain transformers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from basic_lite.console import quiet_libraries
from basic_lite.training.files import write_json
from bench.world.stamps import pictures
from tests.support.answers import Answer, Compared, Prompt, compare, our_answers, prompts_of, table
from tests.support.bundles import random_run
from tests.support.models import write_llm, write_vision
from tests.support.programs import ROOT, run_script, transformers_answers
from tests.support.real_runs import exported, real_run
from tests.support.runs import write_data

FAMILIES = ("qwen2", "qwen3", "gemma")
WHY = "vLLM brings torchvision, whose resized pictures are up to a grey level off those of PIL"


def main(python: str, out: Path) -> None:
    quiet_libraries()
    rows: dict[str, Compared] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for tower in ("clip", "siglip"):
            run = real_run(tower)
            prompts = prompts_of(pictures()) + prompts_of(pictures(), swapped=True)
            ours = our_answers(run, prompts, len(prompts) // 2)
            folder = exported(run, Path(scratch) / tower / "export")
            rows[f"SmolLM2, {tower} tower"], facts = _asked(python, folder, prompts, ours)
        for kind in FAMILIES:
            folder, prompts = _tiny(kind, Path(scratch) / kind)
            reference = transformers_answers(folder, prompts, folder.parent)
            rows[f"tiny {kind}, siglip tower"], facts = _asked(python, folder, prompts, reference)
    write_json(
        out,
        {
            "versions": facts["versions"],
            "dtype": "float32",
            "why_not_zero": WHY,
            "rows": {k: asdict(v) for k, v in rows.items()},
        },
    )
    print(table("vLLM", [replace(row, program=name) for name, row in rows.items()]))
    if wrong := [name for name, row in rows.items() if row.asked - row.equal > row.asked // 30]:
        raise SystemExit(f"vLLM answers otherwise than the trained model: {', '.join(wrong)}")


def _asked(
    python: str, folder: Path, prompts: Sequence[Prompt], reference: Sequence[Answer]
) -> tuple[Compared, dict[str, Any]]:
    command = [python, str(ROOT / "tests" / "real" / "answers_of_vllm.py")]
    answers, facts = run_script(command, folder, prompts, folder.parent / "vllm")
    return compare("vLLM, float32", reference, answers, WHY), facts


def _tiny(kind: str, folder: Path) -> tuple[Path, list[Prompt]]:
    """An export of a tiny random model, and questions about pictures of one colour, then with the next picture."""
    # vLLM's attention on a CPU wants heads of 32 at least.
    write_llm(folder / "llm", kind, hidden_size=128, head_dim=32)
    write_vision(folder / "vision", "siglip")
    write_data(folder, 6)
    run = random_run(folder, {"model.vision_feature_select": "full"}, kind=kind)
    places = [str(folder / "images" / f"{n}.png") for n in range(6)]
    shown = [*places, *places[1:], places[0]]
    return exported(run, folder / "export"), [Prompt(place, "what colour is it ?") for place in shown]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
