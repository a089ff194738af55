"""Signals stop a run between two steps, saved; a second run in its folder doesn't start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from basic_lite.errors import Interrupted, UserError
from basic_lite.recipe import dump_recipe
from basic_lite.run import run_stage
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.interruption import Interruption
from basic_lite.training.lock import locked
from basic_lite.training.step import TrainStep
from tests.support.runs import LOUD, assert_same_terms, assert_same_weights, log_of, quiet, run, steps_of, tiny_recipe

LONG = {"training.max_steps": 5000, "training.save_every": 5000, "training.micro_batch": 4}


# One micro-batch a step: a second signal would stop at once.
INTERRUPTED = {**LOUD, "training.max_steps": 5, "lora.dropout": 0.2, "training.micro_batch": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupted."""
    return run(tmp_path_factory.mktemp("whole"), INTERRUPTED)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_goes_on_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_number: int
) -> None:
    before, place, changes = signal.getsignal(signal_number), whole.parents[1], {**INTERRUPTED, "output": str(tmp_path)}
    real, steps = TrainStep.gradients, 0

    def interrupting(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal_number)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "gradients", interrupting)
        with pytest.raises(Interrupted) as stopped:
            run(place, changes)
    assert stopped.value.checkpoint is not None and stopped.value.checkpoint.name == "checkpoint-3"
    assert (stopped.value.checkpoint / "optimizer.safetensors").exists()
    part = run(place, changes, resume=True)
    assert_same_terms(whole, part, rel=0)
    assert_same_weights(whole / "final", part / "final")
    assert signal.getsignal(signal_number) is before


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A long run in a process group of its own, after its first steps."""
    recipe = tiny_recipe(folder, LONG)
    path = folder / "r.yaml"
    path.write_text(dump_recipe(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "basic_lite", "train", str(path), *overrides],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = folder / "runs" / "tiny" / "log.jsonl"
    end = time.monotonic() + 120
    before = len(log.read_text().splitlines()) if log.exists() else 0
    while not (log.exists() and len(log.read_text().splitlines()) > before + 1):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.05)
    return process


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_signals_to_the_whole_group_reach_the_loaders_workers_and_save_the_run(tmp_path: Path) -> None:
    """As timeout, Slurm and systemd send SIGTERM, and a terminal Ctrl-C; the loader has workers of its own."""
    process = start(tmp_path, "data.workers=2")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"another process trains in .*tiny now. Wait until it ends, or choose"):
            run(tmp_path, LONG, resume=resume)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "stopped, saved in" in said, said
    saved = [path.name for path in (tmp_path / "runs" / "tiny").glob("checkpoint-*")]
    assert len(saved) == 1
    steps = len(steps_of(tmp_path / "runs" / "tiny"))
    assert steps == max(line["step"] for line in log_of(tmp_path / "runs" / "tiny"))
    # Impatience: the second one stops at once, and what comes after changes nothing.
    process = start(tmp_path, "data.workers=2", "--resume")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.02)
    _, said = process.communicate(timeout=60)
    # The last one may come when Python is leaving already, and then ends it.
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in said, said
    assert [path.name for path in (tmp_path / "runs" / "tiny").glob("checkpoint-*")] == saved


def test_a_second_signal_stops_also_where_python_drops_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def twice() -> None:
        with Interruption(said.append, alone=True) as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.requested
            Finalized()
            for _ in range(100):
                time.sleep(0.05)

    said: list[str] = []
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert len(said) == 1 and "evaluated where that is due" in said[0] and "press Ctrl-C again to stop now" in said[0]
    assert not capsys.readouterr().err and sys.unraisablehook is hook


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that holds nothing but the lock is forked")
def test_a_kill_leaves_no_lock_behind(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path):
            os.write(writer, b".")
            time.sleep(600)
        os._exit(1)
    assert os.read(reader, 1) == b"."
    with pytest.raises(UserError, match=r"another process trains in .* now. Wait until it ends, or choose"):
        locked(tmp_path).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass


def test_a_stage_replaces_no_run_in_which_another_process_trains(tmp_path: Path) -> None:
    """A second demo with another seed deleted the folder in which the first one trained."""
    folder = run(tmp_path, {"training.max_steps": 1})
    with locked(folder), pytest.raises(UserError, match="another process trains"):
        run_stage(tiny_recipe(tmp_path, {"training.max_steps": 1, "seed": 5}), replace=True, console=quiet())
    assert (folder / "final").is_dir()
    run_stage(tiny_recipe(tmp_path, {"training.max_steps": 1, "seed": 5}), replace=True, console=quiet())
    assert look_at_bundle(folder).recipe.seed == 5


def test_a_lock_goes_with_its_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another process trains"), locked(tmp_path):
        raise AssertionError
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
