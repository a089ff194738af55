"""SIGKILL at random moments of trainings and exports, each time followed by the same command: nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that a kill costs no import")
@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.long), pytest.param(50, marks=pytest.mark.soak)])
def test_what_a_kill_leaves_is_gone_on_with_bit_for_bit(kills: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kills", str(tmp_path), str(kills), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert f"{kills} kills, " in done.stdout
