"""Programs that answer a job's questions, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.answers import Answer, Prompt, read_answers, write_job

SCRIPTS = Path(__file__).resolve().parent.parent / "real"
LIMIT_S = 540


def require(package: str) -> None:
    """Skip where a package of the extra [real] isn't installed."""
    if find_spec(package) is None:
        pytest.skip(f'{package} isn\'t installed: pip install -e ".[test,real]"')


def transformers_answers(folder: Path, prompts: Sequence[Prompt], scratch: Path) -> list[Answer]:
    """Plain transformers, where basic-lite can't be imported; an assertion holds that."""
    own = [str(Path(__file__).resolve().parents[2] / place) for place in ("", "kernels")]
    paths = [path for path in sys.path if path and path not in own]
    # -I: nothing from this folder or from PYTHONPATH; -S: no .pth file, as an editable install leaves one.
    answers, facts = _run("transformers", ["-I", "-S"], {"folder": str(folder)}, prompts, scratch, paths)
    assert facts["found_basic_lite"] is False
    return answers


def llama_cpp_answers(files: Path, prompts: Sequence[Prompt], scratch: Path) -> list[Answer]:
    """llama.cpp, with the folder's `text.gguf` and `mmproj.gguf`."""
    model = {"text": str(files / "text.gguf"), "mmproj": str(files / "mmproj.gguf")}
    return _run("llama_cpp", [], model, prompts, scratch, [])[0]


def _run(
    program: str, flags: list[str], model: dict[str, str], prompts: Sequence[Prompt], scratch: Path, more: list[str]
) -> tuple[list[Answer], dict[str, Any]]:
    job, out = write_job(scratch / f"{program}.json", model, prompts), scratch / f"{program}_answers.json"
    command = [sys.executable, *flags, str(SCRIPTS / f"answers_of_{program}.py"), str(job), str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_answers(out), json.loads(out.read_text(encoding="utf-8"))
