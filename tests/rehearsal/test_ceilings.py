"""What this machine's device reaches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from basic_lite.cards import CARDS, LAUNCH_S, Card
from basic_lite.rehearsal import ceilings
from basic_lite.rehearsal.counts import operations_seconds


def test_a_launch_here_is_some_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a card of the table it is assumed. A slow host makes small operations as slow, and nothing else."""
    assert CARDS[0].launch_s == LAUNCH_S
    cpu = torch.device("cpu")
    real = ceilings._addition_s(cpu)
    assert 1e-7 < real < 1e-3
    monkeypatch.setattr(ceilings, "_addition_s", lambda device: 7.1e-6)
    ceilings.measured_card.cache_clear()
    try:
        assert ceilings.measured_card(cpu, torch.float32).launch_s == pytest.approx(49.7e-6)
    finally:
        ceilings.measured_card.cache_clear()
    two = Counter({(1e6, 1e3): 4})
    slow, fast = (operations_seconds(two, Card("c", 1, 1, 1, 1, 1, launch_s=s)) for s in (50e-6, 25e-6))
    assert slow[1] == pytest.approx(4 * 50e-6) == 2 * fast[1] and slow[0] == fast[0]
