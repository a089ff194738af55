"""`pytest bench/`: one process, one table at the end, one JSON and one plot where they are asked for."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# `bench` is a folder of the repository, not an installed package: found from its root, wherever pytest starts.
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from basic_lite.model.load import pick_device  # noqa: E402
from bench import measure  # noqa: E402
from bench.report import Report  # noqa: E402

REPORT = pytest.StashKey[Report]()


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
    return pick_device("auto")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config, device: torch.device) -> Report:
    scale = _scale(pytestconfig)
    if device.type == "cpu":
        # With other work on the machine a second thread is mostly waited for: up to 10 times longer, and at random.
        torch.set_num_threads(1)
    rates = measure.measure_rates(device, tiny=scale == "tiny")
    found = pytestconfig.stash[REPORT] = Report(device, scale, rates, measure.describe(device))
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(REPORT, None)
    if found is None:
        return
    terminalreporter.section("bench")
    terminalreporter.write_line(found.table() + "\n")
    folder = HERE / "results" if config.getoption("--write-results") else config.getoption("--results-dir")
    folder = folder or Path(tempfile.gettempdir()) / "basic-lite-bench"
    for path in found.write(config.invocation_params.dir / folder):
        terminalreporter.write_line(f"results  {path}")
