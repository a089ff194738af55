"""SIGKILL at random moments of trainings and exports, each time followed by the same command: nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.kills import Killer, ready_to_fork, require_same

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that a kill costs no import")
# With this seed the kills are aimed at the writing of a checkpoint and at that of the export.
SEED = 70
# One of each kind: what is trained, what resuming needs, what the run was given, what is exported.
COMPARED = (
    "run/final/projector.safetensors",
    "run/best/adapter/adapter_model.safetensors",
    "run/checkpoint-4/optimizer.safetensors",
    "run/checkpoint-4/training.json",
    "run/data.json",
    "run/log.jsonl",
    "export/model.safetensors",
    "export/README.md",
)


@pytest.mark.skipif(
    torch.backends.cuda.is_built(),
    reason="autograd of a build for CUDA may not outlive a fork; `soak` has a fresh process",
)
def test_two_kills(tmp_path: Path) -> None:
    """In forks of this process, which has imported all. Then some files are spoilt, and the comparison sees each."""
    with ready_to_fork():
        killer = Killer(tmp_path, SEED, {"training.max_steps": 4})
        killer.kill(2)
    assert killer.hits.total() == 2 and killer.parts
    for name in COMPARED:
        file = tmp_path / "part0" / name
        was = file.read_bytes()
        file.write_bytes(was.replace(b"4", b"5", 1))
        assert file.read_bytes() != was
        with pytest.raises(AssertionError):
            require_same(tmp_path / "whole", tmp_path / "part0")
        file.write_bytes(was)
    require_same(tmp_path / "whole", tmp_path / "part0")


@pytest.mark.soak
def test_what_a_kill_leaves_is_gone_on_with_bit_for_bit(tmp_path: Path) -> None:
    """Each phase is hit several times: a kill that comes too late hits another."""
    command = [sys.executable, "-m", "tests.support.kills", str(tmp_path), "50", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "50 kills, " in done.stdout
