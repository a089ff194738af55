"""The specification itself: the naive attention mass is its definition, written out element by element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import naive
from tests.support import kernels as kit

torch.set_num_threads(1)


def by_elements(
    query: Tensor,
    key: Tensor,
    scaling: float,
    text: Tensor,
    visual: Tensor,
    valid: Tensor,
    window: int | None,
    cap: float | None,
) -> Tensor:
    B, H, T, _ = query.shape
    mass = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for j in range(T):
                if not (text[b, j] and valid[b, j]):
                    continue
                keys = [i for i in range(j + 1) if valid[b, i] and (window is None or i > j - window)]
                scores = scaling * (key[b, h // (H // key.shape[1]), keys].double() @ query[b, h, j].double())
                if cap is not None:
                    scores = cap * torch.tanh(scores / cap)
                for i, share in zip(keys, scores.softmax(0), strict=True):
                    mass[b, i] += share * float(visual[b, i]) / H
    return mass


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window, cap", [(None, None), (5, None), (None, 2.0)])
def test_attention_mass_is_its_definition(heads: tuple[int, int], window: int | None, cap: float | None) -> None:
    B, T, d = 3, 12, 6
    query, key = kit.draw_on_cpu(B, heads[0], T, d).double(), kit.draw_on_cpu(B, heads[1], T, d, seed=1).double()
    valid, visual = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    valid[0, :3] = valid[1, 10:] = False
    visual[:2, 4:7] = True
    text = ~visual
    mass = naive.attention_mass(
        query, key, scaling=0.4, text_queries=text, visual=visual, valid=valid, sliding_window=window, softcap=cap
    )
    assert kit.relative(mass, by_elements(query, key, 0.4, text, visual, valid, window, cap)) < 1e-12


def test_a_loss_is_zero_where_both_sides_agree() -> None:
    v, weights, table = kit.draw_on_cpu(4, 8).double(), torch.ones(4), kit.draw_on_cpu(9, 8, seed=1).double()
    for kind in ("cosine", "mse"):
        assert naive.direction_loss(v, v, weights, kind).item() == 0
    assert naive.vocab_kl(v, v, table, weights).item() == 0
    assert naive.direction_loss(v, -v, weights).item() == pytest.approx(16)
