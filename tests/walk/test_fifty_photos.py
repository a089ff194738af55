"""Three commands from a folder of pictures to a chat, as README says, in a shell."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from basic_lite.demo.photos import write_photos

SCRIPT = Path(__file__).with_name("fifty_photos.sh")
MOST_SECONDS = 300

pytestmark = pytest.mark.walk


def commands() -> list[str]:
    return [line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line.startswith("basic-lite ")]


def test_three_commands_and_no_yaml_by_hand(tmp_path: Path) -> None:
    assert len(commands()) == 3
    folder = tmp_path / "friday evening"
    folder.mkdir()
    write_photos(folder / "photos")
    beside = str(Path(sys.executable).parent)
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("the script is for bash")
    started = time.monotonic()
    done = subprocess.run(
        [shell, str(SCRIPT)],
        cwd=folder,
        env={**os.environ, "PATH": beside + os.pathsep + os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=2 * MOST_SECONDS,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    with (folder / "photos" / "captions.csv").open(encoding="utf-8", newline="") as stream:
        caption = next(csv.DictReader(stream))["caption"]
    assert (folder / "answer.txt").read_text(encoding="utf-8").strip() == caption
    assert "held-out loss" in done.stdout + done.stderr
    assert seconds <= MOST_SECONDS, f"{seconds:.0f} s"
