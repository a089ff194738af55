"""The specification itself, beside numbers worked out by hand, and the attention mass beside its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import naive
from basic_lite_kernels.signatures import Kind
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


def test_row_scaling_leaves_massive_dimensions_out_of_the_factors() -> None:
    hidden = torch.tensor([[[9.0, 9.0, 9.0], [3.0, 4.0, 12.0], [0.5, -0.5, 100.0]]], dtype=torch.float64)
    positions, massive = torch.tensor([2, 1]), torch.tensor([False, False, True])
    whole, part = naive.row_scaling(hidden, positions), naive.row_scaling(hidden, positions, massive)
    assert torch.allclose(whole.norm, torch.tensor([10000.5**0.5, 13.0]).double()) and whole.massive is None
    assert torch.equal(part.norm, whole.norm) and part.massive is massive
    assert torch.allclose(whole.factor, 3**0.5 / whole.norm)
    assert torch.allclose(part.factor, torch.tensor([2.0, 2**0.5 / 5]).double())
    target = naive.refined_target([hidden], positions, torch.ones(1), [part])
    assert torch.allclose(target, torch.tensor([[1.0, -1.0, 0.0], [0.6 * 2**0.5, 0.8 * 2**0.5, 0.0]]).double())


def test_a_loss_is_zero_where_both_sides_agree() -> None:
    v, weights, table = kit.draw_on_cpu(4, 8).double(), torch.ones(4), kit.draw_on_cpu(9, 8, seed=1).double()
    for kind in ("cosine", "mse"):
        assert naive.direction_loss(v, v, weights, kind).item() == 0
    assert naive.vocab_kl(v, v, table, weights).item() == 0
    assert naive.direction_loss(v, -v, weights).item() == pytest.approx(16)


# The angle between v and v̂ is 0, 90 and 180 degrees; in the last row v̂ has no direction.
V = torch.tensor([[3.0, 0.0], [2.0, 0.0], [2.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([[6.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
# By row: the distance, and its gradient to v: -2 (ŷ - cos x̂) / |v|, or 2 (v - v̂) / D.
DISTANCES = {
    "cosine": ([0, 2, 4, 1], [[0, 0], [0, -1], [0, 0], [0, 0]]),
    "mse": ([4.5, 14.5, 4.5, 8], [[-3, 0], [2, -5], [3, 0], [4, 0]]),
}


@pytest.mark.parametrize("kind", DISTANCES)
def test_direction_loss_is_what_the_hand_finds(kind: Kind) -> None:
    distances, slopes = (torch.tensor(x, dtype=torch.float64) for x in DISTANCES[kind])
    rows = [naive.direction_loss(V[i, None], TARGET[i, None], torch.ones(1), kind) for i in range(len(V))]
    torch.testing.assert_close(torch.stack(rows), distances, rtol=1e-12, atol=1e-12)
    v, weights = V.clone().requires_grad_(), torch.tensor([2.0, 3.0, 5.0, 7.0])
    loss = naive.direction_loss(v, TARGET, weights, kind)
    assert loss.item() == pytest.approx(float(weights.double() @ distances), rel=1e-12)
    (slope,) = torch.autograd.grad(loss, v)
    torch.testing.assert_close(slope, weights[:, None] * slopes, rtol=1e-12, atol=1e-12)
    # Finite differences: to v in every row, to v̂ where it has a direction.
    target = TARGET[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: naive.direction_loss(x, TARGET, weights, kind), v)
    assert torch.autograd.gradcheck(lambda y: naive.direction_loss(V[:3], y, weights[:3], kind), target)


def test_vocab_kl_of_two_words_is_what_the_hand_finds() -> None:
    """Of two words the first has the probability σ(s x·(e1 - e2)): 1/2 where that is 0, 3/4 where it is ln 3."""
    ln3 = math.log(3)
    table = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0]], dtype=torch.float64)  # the second word is excluded
    half, three_quarters = [2.0, 1.0], [ln3 / 2, 0.0]
    v = torch.tensor([half, three_quarters], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([three_quarters, half], dtype=torch.float64, requires_grad=True)
    weights, excluded = torch.tensor([3.0, 5.0]), torch.tensor([False, True, False])
    loss = naive.vocab_kl(v, target, table, weights, scale=2.0, excluded=excluded)
    # 3/4 ln(3/4 ÷ 1/2) + 1/4 ln(1/4 ÷ 1/2), and 1/2 ln(1/2 ÷ 3/4) + 1/2 ln(1/2 ÷ 1/4)
    assert loss.item() == pytest.approx(3 * (0.75 * ln3 - math.log(2)) + 5 * 0.5 * math.log(4 / 3), rel=1e-12)
    # To v: a s (q - p) (e1 - e2). To v̂: a s p (1 - p) (logit of p - logit of q) (e1 - e2).
    expected = [[[-1.5, 3.0], [2.5, -5.0]], [[1.125 * ln3, -2.25 * ln3], [-2.5 * ln3, 5.0 * ln3]]]
    for slope, by_hand in zip(torch.autograd.grad(loss, (v, target)), expected, strict=True):
        torch.testing.assert_close(slope, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_refined_target_is_what_the_hand_finds() -> None:
    """Two layers of two samples with two tokens; the tokens at 3 and 0 of the flattened four are visual."""
    first = torch.arange(8.0).view(2, 2, 2)
    found = naive.refined_target([first, 10 * first], torch.tensor([3, 0]), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(found, torch.tensor([[46.5, 54.25], [0.0, 7.75]]))
