"""What a name alone tells is told at once: before torch and transformers are imported, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Each command with what it says, given in a folder that holds a finished run `runs/photos` without predictions.
REFUSED = {
    "data fotos": "fotos: there is no such file or folder; did you mean photos?",
    "data my photos": "a name with spaces goes in quotes, as in",
    "check fotos": "fotos: there is no such file or folder; did you mean photos?",
    "compare runs/photos runs/other": "runs/photos has no predictions yet; ",
    "compare runs/photos runs/nowhere": "has no predictions yet; ",
    "chat runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "chat runs/photos missing.jpg why": "there is no picture missing.jpg; correct its path",
    "inspect runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "report runs/photo": "runs/photo is no run folder; did you mean runs/photos?",
    "eval runs/photo --held-out": "there is no folder runs/photo; did you mean runs/photos?",
    "eval runs/photos --data a.json": "a.json: there is no such file or folder",
    "export runs/photo out": "there is no folder runs/photo; did you mean runs/photos?",
    "text-probe runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "train photos.yaml": "the run folder runs/photos already holds ",
}
PROGRAM = """
import sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "accelerate", "datasets", "PIL"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Heavy())
from basic_lite.cli import main
for line in sys.stdin.read().splitlines():
    print(line, file=sys.stderr)
    try: main(line.split())
    except SystemExit as stop: assert stop.code == 2
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("photos", "other"):
        final = tmp_path / "runs" / name / "final"
        final.mkdir(parents=True)
        (final / "manifest.json").write_text("{}")
        (final.parent / "parts.json").write_text('[{"part": "LLM"}]')
    (tmp_path / "photos.yaml").write_text(
        "name: photos\nstage: 1\nmodel: {vision: v, llm: l}\ndata: {train: {path: a.json}}\n"
    )
    return tmp_path


def test_errors_that_a_name_tells_come_before_heavy_imports(here: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], input="\n".join(REFUSED), capture_output=True, text=True, cwd=here, timeout=60
    )
    assert result.returncode == 0, result.stderr
    said = result.stderr.splitlines()
    assert len(said) == 2 * len(REFUSED), result.stderr
    for (command, text), line, error in zip(REFUSED.items(), said[::2], said[1::2], strict=True):
        assert line == command and error.startswith("error: ") and text in error, (command, error)
