"""`pytest bench/`: one process, one table at the end, one JSON and one plot where they are asked for."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# `bench` is a folder of the repository, not an installed package: found from its root, wherever pytest starts.
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from bench import measure  # noqa: E402
from bench.report import Report  # noqa: E402

REPORT = pytest.StashKey[Report]()

NEEDS_GPU = (
    "the Triton kernels of all three operations: time, memory, % of copy bandwidth and of the GEMM rate",
    "beside them naive autocast, torch.compile, Liger's fused linear KL and JSD, flash-linear-attention's KL",
    "the kernel tests un-interpreted, and the race check",
    "the training steps of 7B recipes: memory beside its prediction, tokens/s, BASIC on and off",
    "run `python -m bench.gpu_suite --out DIR` where there is a GPU",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--tiny", action="store_true", help="toy shapes, a few seconds: does the bench itself still run?")
    group.addoption("--write-results", action="store_true", help="write the JSON and the plot into bench/results")
    group.addoption("--results-dir", type=Path, help="write the JSON and the plot into this folder")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    # Two timings at once are none. This runs before pytest-xdist reads the number of workers from addopts.
    if hasattr(config.option, "numprocesses"):
        config.option.numprocesses = 0
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise pytest.UsageError("TRITON_INTERPRET is set: the time of an interpreted kernel says nothing; unset it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `pytest .` this file is read too late to keep the workers away."""
    if hasattr(config, "workerinput"):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="timings need one process: python -m pytest bench/"))


def _scale(config: pytest.Config) -> str:
    if config.getoption("--tiny", default=False):
        return "tiny"
    return "gpu" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``shape``: the bench file's SHAPES for this scale, one test each."""
    if "shape" in metafunc.fixturenames:
        shapes = metafunc.module.SHAPES[_scale(metafunc.config)]
        metafunc.parametrize("shape", shapes, ids=[str(shape) for shape in shapes])


@pytest.fixture(scope="session")
def device() -> torch.device:
    return measure.pick_device()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config, device: torch.device) -> Iterator[Report]:
    scale = _scale(pytestconfig)
    if device.type == "cpu":
        # With other work on the machine a second thread is mostly waited for: up to 10 times longer, and at random.
        torch.set_num_threads(1)
    found = Report(device, scale, measure.measure_rates(device, tiny=scale == "tiny"), measure.describe(device))
    if device.type != "cuda":
        found.notes += [f"needs a GPU: {what}" for what in NEEDS_GPU[:-1]] + [NEEDS_GPU[-1]]
    pytestconfig.stash[REPORT] = found
    yield found
    if device.type == "cuda":
        torch.cuda.empty_cache()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(REPORT, None)
    if found is None:
        return
    write = terminalreporter.write_line
    terminalreporter.section("bench")
    for line in found.table().splitlines():
        write(line)
    folder: Path | None = config.getoption("--results-dir")
    if config.getoption("--write-results"):
        folder = HERE / "results"
    if folder is None:
        folder = Path(tempfile.gettempdir()) / "basic-lite-bench"
    if found.rows or found.steps:
        write("")
        written = found.write(folder if folder.is_absolute() else config.invocation_params.dir / folder)
        for what, path in written.items():
            write(f"{what}  {path}")
