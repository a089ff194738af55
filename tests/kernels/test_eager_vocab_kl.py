"""``vocab_kl`` in eager PyTorch against the naive one in float64."""

from __future__ import annotations

import pytest
import torch

from basic_lite_kernels import naive
from basic_lite_kernels.eager_vocab_kl import vocab_kl
from tests.support import kernels as kit
from tests.support.kernels import draw_on_cpu as draw

torch.set_num_threads(1)


@pytest.mark.parametrize("logit_scale", [0.01, 1.0, 16.0])
@pytest.mark.parametrize("nearness", [1.0, 0.05])
@pytest.mark.parametrize("excludes", [False, True])
def test_and_gradients(logit_scale: float, nearness: float, excludes: bool) -> None:
    M, D, V = 11, 16, 97
    v = draw(M, D)
    target = v + nearness * draw(M, D, seed=1)
    table, weights = draw(V, D, seed=2, scale=logit_scale / D**0.5), draw(M, seed=3).abs()
    excluded = None
    if excludes:
        excluded = torch.zeros(V, dtype=torch.bool)
        excluded[[0, 5, 96]] = True
        table[excluded] = 50.0  # would dominate
    inputs = [x.clone().requires_grad_() for x in (v, target)]
    exact = [x.double().requires_grad_() for x in (v, target)]
    loss = vocab_kl(*inputs, table, weights, scale=0.7, excluded=excluded, chunk_rows=4)
    (5.0 * loss).backward()
    truth = naive.vocab_kl(*exact, table.double(), weights.double(), scale=0.7, excluded=excluded)
    (5.0 * truth).backward()
    assert kit.relative(loss.detach(), truth.detach()) < 1e-5
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert kit.relative(x.grad, y.grad) < 2e-5


@pytest.mark.parametrize("gap", [1e-4, 0.01, 0.045, 0.055, 0.2])
def test_terms_on_both_sides_of_the_series(gap: float) -> None:
    """In float64, where only the cut of the series is left; log p and log q differ by about ``gap``."""
    v, table = draw(4, 8).double(), draw(30, 8, seed=2).double() / 8**0.5
    target = v + gap * draw(4, 8, seed=1).double().clamp(-1, 1)
    truth = naive.vocab_kl(v, target, table, torch.ones(4).double())
    tolerance = 1e-7 + 1e-15 / gap**2  # the naive difference cancels
    assert kit.relative(vocab_kl(v, target, table, torch.ones(4)), truth) < tolerance


def test_gradcheck_in_float64() -> None:
    v, target = draw(3, 4).double().requires_grad_(), draw(3, 4, seed=1).double().requires_grad_()
    table, weights = draw(9, 4, seed=2).double(), torch.tensor([0.2, 1.0, 3.0])
    assert torch.autograd.gradcheck(lambda a, b: vocab_kl(a, b, table, weights, scale=1.3, chunk_rows=2), (v, target))


def test_is_zero_where_both_agree_and_positive_elsewhere() -> None:
    v, table = draw(6, 8).requires_grad_(), draw(50, 8, seed=1)
    loss = vocab_kl(v, v.detach().clone(), table, torch.ones(6))
    loss.backward()
    assert loss.item() == 0.0 and v.grad is not None and not v.grad.any()
    for seed in range(20):
        nearby = v.detach() + 1e-4 * draw(6, 8, seed=seed)
        assert vocab_kl(v, nearby, table, torch.ones(6)).item() > 0


def test_survives_one_sided_certainty() -> None:
    """p and q that share no support: exp would overflow or give 0 · inf."""
    table = torch.eye(3) * 300.0
    v = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    loss = vocab_kl(v, torch.tensor([[0.0, 1.0, 0.0]]), table, torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert v.grad is not None and torch.allclose(v.grad, torch.tensor([[300.0, -300.0, 0.0]]))


def test_bf16_table_counts_as_its_values_even_under_autocast() -> None:
    v, target, table = draw(5, 16), draw(5, 16, seed=1), draw(40, 16, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vocab_kl(v, target, table, torch.ones(5))
    truth = naive.vocab_kl(v.double(), target.double(), table.double(), torch.ones(5).double())
    assert loss.dtype == torch.float32 and kit.relative(loss, truth) < 1e-5


def test_repeated_backward_and_no_grad() -> None:
    v, target, table = draw(5, 8).requires_grad_(), draw(5, 8, seed=1), draw(20, 8, seed=2)
    loss = vocab_kl(v, target, table, torch.ones(5))
    loss.backward(retain_graph=True)
    assert v.grad is not None
    first = v.grad.clone()
    loss.backward()
    assert torch.equal(v.grad, 2 * first)
    with torch.no_grad():
        assert not vocab_kl(v, target, table, torch.ones(5)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M", [200, 800])
def test_memory_is_its_formula(M: int, dtype: torch.dtype) -> None:
    D, V, R = 32, 4000, 64
    v, target, table = draw(M, D).requires_grad_(), draw(M, D, seed=1), draw(V, D, seed=2).to(dtype)
    weights = torch.ones(M)
    with kit.MadeShapes() as made:
        loss = vocab_kl(v, target, table, weights, chunk_rows=R)
    assert max(torch.Size(shape).numel() for shape in made.shapes) == R * V, "never [M, V]"
    peak = kit.peak_bytes(lambda: vocab_kl(v, target, table, weights, chunk_rows=R), kit.CPU)
    assert 8 * R * V < peak <= 4 * M * D + 10 * R * V + 64 * M
    peak = kit.peak_bytes(loss.backward, kit.CPU)
    assert peak <= 4 * M * D + 64 * M
