"""Programs that answer questions about pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.answers import MAX_TOKENS, Answer, Prompt, read_answers, write_job
from tests.support.llama_cpp import LlamaCpp

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "real" / "answers_of_transformers.py"
LIMIT_S = 540


def require(package: str) -> None:
    """Skip where a package of the extra [real] isn't installed."""
    if find_spec(package) is None:
        pytest.skip(f'{package} isn\'t installed: pip install -e ".[test,real]"')


def llama_cpp_answers(files: Path, prompts: Sequence[Prompt]) -> list[Answer]:
    """llama.cpp, with the folder's `text.gguf` and `mmproj.gguf`."""
    server = LlamaCpp(files, context=1024)
    answers = []
    for prompt in prompts:
        with Image.open(prompt.image) as picture:
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": prompt.question}]
            said = server.asked([{"role": "user", "content": parts}], tokens=MAX_TOKENS, likeliest=1)
        logprobs = [likely[chosen] for likely, chosen in zip(said.logprobs, said.ids, strict=True)]
        answers.append(Answer(said.text.strip(), said.ids, logprobs))
    return answers


def transformers_answers(folder: Path, prompts: Sequence[Prompt], scratch: Path) -> list[Answer]:
    """Plain transformers, where basic-lite can't be imported; an assertion holds that."""
    packages = ("basic_lite", "basic_lite_kernels")
    paths = [path for path in sys.path if path and not any((Path(path) / name).is_dir() for name in packages)]
    # -I: nothing from this folder or from PYTHONPATH; -S: no .pth file, as an editable install leaves one.
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    answers, facts = run_script(command, folder, prompts, scratch / "transformers", paths)
    assert facts["found_basic_lite"] is False
    return answers


def run_script(
    command: Sequence[str], folder: Path, prompts: Sequence[Prompt], scratch: Path, more: Sequence[str] = ()
) -> tuple[list[Answer], dict[str, Any]]:
    """Run one of `tests/real/answers_of_*.py` on an exported folder; its answers, and all that it wrote."""
    scratch.mkdir(parents=True, exist_ok=True)
    job, out = write_job(scratch / "job.json", folder, prompts), scratch / "answers.json"
    done = subprocess.run([*command, str(job), str(out), *more], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_answers(out), json.loads(out.read_text(encoding="utf-8"))
