"""What several test files of one kernel share."""

import pytest

from tests.support import kernels as kit


@pytest.fixture
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vocab_kl``'s rows of a small vocabulary are several blocks, a ragged last one; a GPU keeps its own block."""
    if kit.INTERPRETED:
        from basic_lite_kernels import vocab_kl

        monkeypatch.setattr(vocab_kl, "BLOCK_V", 64)
