"""The suite for a GPU: its plan, its steps' limits and results, and a dry run of every step on the CPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from basic_lite import cli
from basic_lite.recipe import shipped_recipe
from basic_lite.tools.shipped import CARD
from bench.gpu_suite import needs, profiled
from bench.gpu_suite.__main__ import main
from bench.gpu_suite.plan import KERNELS, PLANNED, RUNS, TRAINING, kernel_tests, stages_of
from bench.gpu_suite.profiled import Span, timeline
from bench.gpu_suite.running import STOP_S, Running, Step, Suite
from tests.support.kernels import HAS_TRITON

ROOT = Path(__file__).resolve().parents[2]
STEPS = [step.name for stage in stages_of(RUNS, Path("work"), dry=True) for step in stage]
QUICK = ("ceilings", "races")


def suite(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command from the repository's root, where nothing is installed but what it needs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "bench.gpu_suite", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def dry_run(out: Path, names: list[str]) -> None:
    """Run some steps dry; each must pass, and leave its results in the one tar."""
    done = suite("--out", str(out), "--dry", *(word for name in names for word in ("--only", name)), timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["results.tar", "suite.json"]
    steps = json.loads((out / "suite.json").read_text(encoding="utf-8"))["steps"]
    assert {step["name"]: step["outcome"] for step in steps} == dict.fromkeys(names, "passed")
    with tarfile.open(out / "results.tar") as tar:
        packed = {Path(name).stem for name in tar.getnames()}
    assert set(names) <= packed and "suite" in packed


@pytest.mark.soak
def test_quick_steps_run_dry(tmp_path: Path) -> None:
    dry_run(tmp_path / "out", list(QUICK))


@pytest.mark.soak  # plain: the quick ones; the others' code has tests of its own
@pytest.mark.parametrize("name", [name for name in STEPS if name not in QUICK])
def test_step_runs_dry(name: str, tmp_path: Path) -> None:
    dry_run(tmp_path / "out", [name])


def test_each_run_has_time_for_its_steps() -> None:
    def most_seconds(run: str) -> float:
        stages = stages_of([run], Path("work"), dry=False)
        return sum(max(step.seconds for step in stage) + STOP_S for stage in stages)

    assert [most_seconds(run) <= limit for run, limit in zip(RUNS, (10 * 60, 4 * 60, 4 * 60), strict=True)] == [
        True
    ] * 3
    assert len(STEPS) == len(set(STEPS)), "a step's log has its name"
    for recipe, (limit_gib, _) in TRAINING.items():
        card = CARD.search(shipped_recipe(recipe).read_text(encoding="utf-8"))
        assert card is not None and int(card["gb"]) <= limit_gib


@pytest.mark.soak
@pytest.mark.parametrize("recipe", TRAINING)
def test_the_plans_are_the_planners(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["estimate", recipe, "--gpu", str(TRAINING[recipe][0])])
    (fastest,) = (line for line in capsys.readouterr().out.splitlines() if "fastest that fits" in line)
    layers = PLANNED[recipe]
    assert fastest.startswith(f"micro-batch 1, {f'{layers} of 32 layers' if layers else 'no layer'} recomputed ")


def test_keys_stand_right_behind_the_recipe() -> None:
    """There alone argparse of every Python finds them."""
    for step in (step for stage in stages_of(RUNS, Path("work"), dry=False) for step in stage):
        options = next(
            (place for place, word in enumerate(step.arguments) if word.startswith("--")), len(step.arguments)
        )
        assert not any("training." in word or "supervision." in word for word in step.arguments[options:]), step.name


def test_every_kernel_has_tests_in_the_plan() -> None:
    files = kernel_tests()
    assert all((ROOT / file).is_file() for file in files)
    assert all(any(kernel in file for file in files) for kernel in KERNELS)


@pytest.mark.long
def test_no_step_is_without_tests() -> None:
    """Whatever markers a plain run leaves out."""
    steps = [step for stage in stages_of(RUNS, Path("work"), dry=True) for step in stage]
    programs = [step.arguments for step in steps if step.arguments[0] == "pytest" and "bench/" not in step.arguments]
    assert len(programs) == 2
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-m", *program, "--collect-only"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and " tests collected" in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
@pytest.mark.long
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = suite("--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "needs a GPU" in done.stderr and "--dry" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_missing_stops_it_and_an_odd_version_is_noted() -> None:
    versions = {"pytest": "8.4.2", "torch": "2.13.0+cu130"}

    def version_of(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    found = needs.missing(version_of)
    assert any(line.startswith("bitsandbytes isn't installed; bitsandbytes") for line in found)
    assert not any(line.startswith(("torch ", "pytest ", "ruff", "gguf")) for line in found)
    assert needs.notes(version_of) == ["pytest 8.4.2 is installed; pytest>=9 is asked for"]


def test_wheels_that_travel_are_unpacked_and_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    for name, value in (("WHEELS", wheels), ("SITE", site), ("MARKER", site / "unpacked-for.txt")):
        monkeypatch.setattr(needs, name, value)
    assert needs.unpack() is None and str(site) not in needs.paths()
    wheels.mkdir()
    source = tmp_path / "source"
    (source / "carried").mkdir(parents=True)
    (source / "carried" / "__init__.py").write_text("")
    (source / "pyproject.toml").write_text("[project]\nname = 'carried'\nversion = '1'\n")
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(wheels)], cwd=source, check=True, capture_output=True)
    monkeypatch.setattr(needs, "missing", list)
    monkeypatch.setattr(needs, "notes", list)
    assert needs.unpack() is None and not site.exists(), "nothing is missing, so nothing is unpacked"
    monkeypatch.setattr(needs, "missing", lambda: ["carried isn't installed"])
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip to unpack with")
    assert needs.unpack() is None and needs.paths()[0] == str(site) and (site / "carried").is_dir()
    (wheels / "broken-1-py3-none-any.whl").write_text("no wheel")
    assert needs.unpack() is None, "unpacked once for this Python"
    needs.MARKER.unlink()
    assert "broken" in (needs.unpack() or "")


def step_of(code: str, seconds: float, name: str = "one") -> Step:
    """A program of one line, which `python -m` runs through a module that takes code."""
    return Step(name, ["timeit", "-n1", "-r1", code], seconds)


def test_results_are_written_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packages are found from the root; one that fails or runs out of time is said so, and the others still run."""
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir(), work.mkdir()
    running = Suite(out, work, {"device": "none"})
    running.run(
        [step_of("from importlib.util import find_spec as f; print(f('basic_lite_kernels').origin)", 60, "good")]
    )
    assert running.passed and running.ended[0].last_lines[0].startswith(str(ROOT / "kernels"))
    assert 0 < running.left_s < 60, "what it has left is for the next"
    running.left_s = 0.0
    started = time.monotonic()
    sleeps = "import time; print('began', flush=True); time.sleep(60)"
    running.run([step_of("raise SystemExit('no')", 60, "bad"), step_of(sleeps, 2, "slow")])
    assert time.monotonic() - started < 30
    assert {step.name: step.outcome for step in running.ended} == {
        "good": "passed", "bad": "failed", "slow": "out of time"
    }  # fmt: skip
    assert not running.passed and "began" in running.ended[-1].last_lines
    with tarfile.open(out / "results.tar") as tar:
        assert tar.getnames() == ["bad.log", "good.log", "slow.log", "suite.json"]
        stored = tar.extractfile("suite.json")
        assert stored is not None
        result = json.loads(stored.read())
    assert result["device"] == "none" and [step["name"] for step in result["steps"]] == ["good", "bad", "slow"]
    assert "bad: failed" in capsys.readouterr().out and "slow           out of time" in running.table()


def test_a_stopped_suite_leaves_no_step_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Running):
        def has_ended(self) -> bool:
            raise KeyboardInterrupt

    from bench.gpu_suite import running

    monkeypatch.setattr(running, "Running", Stopped)
    with pytest.raises(KeyboardInterrupt):
        Suite(tmp_path, tmp_path, {}).run([step_of("import time; time.sleep(60)", 60)])
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "timeit" in " ".join(child.cmdline())]


def test_results_of_another_run_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.tar").write_text("precious")
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path), "--dry"])
    assert stopped.value.code == 2 and "name another folder" in capsys.readouterr().err
    assert (tmp_path / "results.tar").read_text() == "precious"


def test_a_program_is_told_when_to_begin_nothing_more(tmp_path: Path) -> None:
    one = Running(Step("one", ["timeit", "-n1", "-r1", "SECONDS"], 40.0), 40.0, tmp_path)
    one.process.wait()
    assert one.command[-1] == f"{40 - STOP_S}" and one.has_ended() and one.result().outcome == "passed"


def test_a_timeline_has_busy_time_gaps_and_kernels() -> None:
    ms = 10**6
    spans = [Span(0, 2 * ms, "a"), Span(ms, 3 * ms, "b"), Span(5 * ms, 6 * ms, "a"), Span(6 * ms + 100, 7 * ms, "b")]
    found = timeline(spans)
    assert found["total_ms"] == 7 and found["busy_share"] == pytest.approx(5 / 7, abs=1e-3) and found["launches"] == 4
    assert (found["gaps"], found["gaps_ms"]) == (1, 2.0), "what a launch takes is no gap"
    assert found["longest_gaps"] == [{"ms": 2.0, "after": "b", "before": "a"}]
    assert [(row["name"], row["calls"]) for row in found["top"]] == [("a", 2), ("b", 2)]


def test_waits_are_counted_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card torch warns of each; here the warning stands for it."""
    import warnings

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with profiled.waits(torch.device("cuda")) as found:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert modes == ["warn", "default"] and list(found.values()) == [2]
    assert next(iter(found)).startswith("tests/bench/test_gpu_suite.py:"), "no folder of this machine"


@pytest.mark.skipif(not HAS_TRITON, reason="triton isn't installed, so there are no kernels")
def test_loaded_kernels_say_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    from basic_lite_kernels import vocab_kl
    from bench.gpu_suite.races import loaded_kernels

    def compiled(spills: int, module: object) -> Any:
        metadata = SimpleNamespace(num_warps=8, shared=16)
        return SimpleNamespace(metadata=metadata, n_regs=40, n_spills=spills, module=module)

    loaded = {"loaded": compiled(3, object()), "only compiled": compiled(9, None)}
    monkeypatch.setitem(vocab_kl.vocab_kl_kernel.device_caches, 0, (loaded, {}, None, None, None))
    assert loaded_kernels() == [
        {"name": "vocab_kl_kernel", "warps": 8, "registers": 40, "stack_bytes": 12, "shared_bytes": 16}
    ]
