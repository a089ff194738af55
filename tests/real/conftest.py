"""The table of all programs, at the end of a session that asked some."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support.served import results_folder, results_table


def pytest_sessionstart(session: pytest.Session) -> None:
    # Workers of pytest-xdist write their results; the process that started them clears and reads them.
    if "PYTEST_XDIST_WORKER" not in os.environ and "real" in str(session.config.getoption("markexpr")).split():
        shutil.rmtree(results_folder())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(results_table())
