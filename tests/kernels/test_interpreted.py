"""All kernel tests through Triton's interpreter, in one process, since each start of one costs seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kernels import run_interpreted

TESTS = Path(__file__).parents[1]


def kernel_files() -> list[Path]:
    """The files with kernel tests, but for those that start their own process."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("test_*.py"))}
    marks = ("@kernel_test\n", "@kit.kernel_test\n")
    own = "run_interpreted(__file__)\n"
    return [
        path
        for path, text in texts.items()
        if path != Path(__file__) and any(m in text for m in marks) and own not in text
    ]


@pytest.mark.long
def test_through_the_interpreter() -> None:
    files = kernel_files()
    assert len(files) >= 8
    run_interpreted(*files)


@pytest.mark.soak
def test_slow_ones_through_the_interpreter() -> None:
    run_interpreted(*kernel_files(), slow=True)
