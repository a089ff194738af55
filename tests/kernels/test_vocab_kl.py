"""``vocab_kl`` by Triton against float64, and against eager code of the same types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import naive
from basic_lite_kernels import vocab_kl as file
from basic_lite_kernels.vocab_kl import vocab_kl

pytestmark = pytest.mark.usefixtures("several_blocks")
torch.set_num_threads(1)

# What the error may have beyond that of eager code: the resolution of what a type rounds (factors, q − p).
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)


def exact_results(
    v: Tensor,
    target: Tensor,
    table: Tensor,
    weights: Tensor,
    scale: float,
    excluded: Tensor | None,
    upstream: float = 1.0,
) -> list[Tensor]:
    x, y = (t.double().requires_grad_() for t in (v, target))
    return kit.loss_and_gradients(
        naive.vocab_kl(x, y, table.double(), weights.double(), scale=scale, excluded=excluded), x, y, upstream=upstream
    )


def compare(
    v: Tensor,
    target: Tensor,
    table: Tensor,
    weights: Tensor,
    *,
    scale: float = 1.0,
    excluded: Tensor | None = None,
    chunk_rows: int | None = None,
    upstream: float = 5.0,
    tolerance: float | None = None,
) -> list[float]:
    """Ours against eager code and the truth, loss and both gradients; the errors."""
    x, y = (t.clone().requires_grad_() for t in (v, target))
    with kit.nan_filled_buffers():
        loss = vocab_kl(x, y, table, weights, scale=scale, excluded=excluded, chunk_rows=chunk_rows)
    ours = kit.loss_and_gradients(loss, x, y, upstream=upstream)
    assert loss.dtype == torch.float32 and ours[1].dtype == v.dtype and loss.item() >= 0
    # Products in the table's type, the rest in it or float32.
    rounded = x.to(table.dtype), y.to(table.dtype)
    eager = kit.loss_and_gradients(
        naive.vocab_kl(*rounded, table, weights, scale=scale, excluded=excluded), x, y, upstream=upstream
    )
    truth = exact_results(v, target, table, weights, scale, excluded, upstream)
    for o, e, t in zip(ours, eager, truth, strict=True):
        kit.assert_as_good_as(o, e, t, TOLERANCE[table.dtype] if tolerance is None else tolerance)
    return [kit.relative(o, t) for o, t in zip(ours, truth, strict=True)]


# ---- values and gradients


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit_std", [0.01, 1.0, pytest.param(8.0, marks=kit.slow_interpreted), 50.0])
@pytest.mark.parametrize("nearness", [1.0, 0.01])
def test_loss_and_gradients(dtype: torch.dtype, logit_std: float, nearness: float) -> None:
    M, D, V = 5, 24, 67
    v = kit.draw(M, D)
    target = v + nearness * kit.draw(M, D, seed=1)
    table = kit.draw(V, D, seed=2, scale=logit_std / D**0.5)
    excluded = torch.zeros(V, dtype=torch.bool, device=kit.DEVICE)
    excluded[[0, 5, 66]] = True
    table[excluded] = 50.0  # would dominate
    weights = kit.draw(M, seed=3).abs()
    # Rounded factors move logits in proportion to their size, and p by as much of itself. Where u is tiny, it has the
    # rounding of float32 logits. Eager code is no measure of either where, by luck, it is better.
    tolerance = TOLERANCE[dtype] * max(1.0, 0.5 * logit_std) + 2e-7 / (nearness * min(1.0, logit_std))
    errors = compare(
        v, target, table.to(dtype), weights, scale=0.7, excluded=excluded, chunk_rows=2, tolerance=tolerance
    )
    assert max(errors) <= 2 * tolerance


@kit.kernel_test
@pytest.mark.parametrize(
    "M, D, V",
    [(1, 96, 33), (575 if kit.ON_GPU else 37, 8, 5), (2, 2560, 33), (2, 5120, 40)]
    + ([(1153, 96, 33), (575, 4096, 32000), (1153, 2560, 32000), (70, 5120, 152064)] if kit.ON_GPU else []),
)
def test_shapes(M: int, D: int, V: int) -> None:
    v, target = kit.draw(M, D), kit.draw(M, D, seed=1)
    table = kit.draw(V, D, seed=2, scale=2 / D**0.5).to(torch.bfloat16)
    compare(v, target, table, kit.draw(M, seed=3).abs())


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [32000, 152064])
def test_large_vocabularies(V: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat softmax over them is below fp16's normal numbers: unscaled, its q − p would be lost."""
    if kit.INTERPRETED:
        monkeypatch.setattr(file, "BLOCK_V", 8192)
    v = kit.draw(2, 16)
    target = v + 0.1 * kit.draw(2, 16, seed=1)
    errors = compare(v, target, kit.draw(V, 16, seed=2, scale=0.05).to(dtype), torch.ones(2, device=kit.DEVICE))
    assert max(errors) <= TOLERANCE[dtype]


@kit.kernel_test
@given(
    M=st.integers(0, 5),
    D=st.integers(1, 40),
    V=st.integers(1, 5000 if kit.ON_GPU else 100),
    chunk_rows=st.none() | st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    input_dtype=st.sampled_from(DTYPES),
    excludes=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([0.02, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
@example(1, 1, 3, None, torch.float32, torch.float16, 0.0, 0.02, 16)  # a gradient of 4.4 steps of float16
@settings(max_examples=25)
def test_drawn_shapes(
    M: int,
    D: int,
    V: int,
    chunk_rows: int | None,
    dtype: torch.dtype,
    input_dtype: torch.dtype,
    excludes: float,
    scale: float,
    seed: int,
) -> None:
    v, target = kit.draw(M, D, seed=seed).to(input_dtype), kit.draw(M, D, seed=seed + 1).to(input_dtype)
    table, weights = kit.draw(V, D, seed=seed + 2, scale=D**-0.5).to(dtype), kit.draw(M, seed=seed + 3).abs()
    excluded = kit.draw(V, seed=seed + 4).abs() < 0.385 if excludes == 0.3 else None  # 30 %
    if excludes == 1.0:
        excluded = torch.ones(V, dtype=torch.bool, device=kit.DEVICE)
    x, y = v.clone().requires_grad_(), target.clone().requires_grad_()
    with kit.nan_filled_buffers():
        loss = vocab_kl(x, y, table, weights, scale=scale, excluded=excluded, chunk_rows=chunk_rows)
    ours = kit.loss_and_gradients(loss, x, y)
    if M == 0 or V == 1 or (excluded is not None and (~excluded).sum() <= 1):
        # One word, or none, has nothing to say.
        assert not any(bool(part.any()) for part in ours)
        return
    truth = exact_results(v, target, table, weights, scale, excluded)
    allowed = 10 * max(TOLERANCE[dtype], TOLERANCE[input_dtype])
    for o, t in zip(ours, truth, strict=True):
        # Below its normal numbers a type rounds to steps of one size; float16 meets them.
        kind = torch.finfo(o.dtype)
        rounded = kind.smallest_normal * kind.eps / 2 * o.numel() ** 0.5
        assert float((o.double() - t).norm()) <= allowed * float(t.norm()) + rounded + 1e-9


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_where_both_agree_and_positive_elsewhere(dtype: torch.dtype) -> None:
    v, table = kit.draw(4, 8, scale=3).requires_grad_(), kit.draw(70, 8, seed=1).to(dtype)
    loss = vocab_kl(v, v.detach().clone(), table, torch.ones(4, device=kit.DEVICE))
    loss.backward()
    assert loss.item() == 0.0 and v.grad is not None and not v.grad.any()
    for seed in range(3):
        nearby = v.detach() + 1e-4 * kit.draw(4, 8, seed=seed)
        assert vocab_kl(v, nearby, table, torch.ones(4, device=kit.DEVICE)).item() > 0


@kit.kernel_test
@pytest.mark.parametrize("gap", [1e-3, 0.045, 0.055, 0.2])
def test_nearby_targets_keep_their_digits(gap: float) -> None:
    """On both sides of the series; in bf16 eager code is wrong by more than the whole gradient at the nearest."""
    v, table = kit.draw(4, 8), kit.draw(70, 8, seed=2, scale=8**-0.5).to(torch.bfloat16)
    target = v + gap * kit.draw(4, 8, seed=1).clamp(-1, 1)
    errors = compare(v, target, table, torch.ones(4, device=kit.DEVICE))
    assert max(errors) < 0.015
    tolerance = 2e-5 + 2e-7 / gap  # float32 logits
    errors = compare(v, target, table.float(), torch.ones(4, device=kit.DEVICE), tolerance=tolerance)
    assert max(errors) <= 2 * tolerance


@kit.kernel_test
def test_nearby_targets_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs of its sums are far from 0: their difference, and Σ p u as it stands, lose what this keeps."""
    if kit.INTERPRETED:
        monkeypatch.setattr(file, "BLOCK_V", 4096)
    v, table = kit.draw(4, 8), kit.draw(20000, 8, seed=2, scale=0.3)
    target = v + 1e-3 * kit.draw(4, 8, seed=1).clamp(-1, 1)
    loss, *gradients = compare(v, target, table, torch.ones(4, device=kit.DEVICE), tolerance=2e-4)
    assert loss < 2e-5 and max(gradients) < 2e-4


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_far_shorter_than_v(dtype: torch.dtype) -> None:
    """v + (v̂ − v), both rounded, would lose v̂ in the rounding of v: in bf16 the gradient would be 26 % wrong."""
    target, table = kit.draw(6, 24, seed=1), kit.draw(90, 24, seed=2, scale=4 / 24**0.5).to(dtype)
    for size in (1.0, 1.9, 2.1, 30.0, 100.0):
        weights = torch.ones(6, device=kit.DEVICE)
        errors = compare(size * kit.draw(6, 24), target, table, weights, tolerance=TOLERANCE[dtype])
        assert max(errors) <= 2 * TOLERANCE[dtype]


@kit.kernel_test
def test_one_sided_certainty() -> None:
    """p and q that share no support: exp would overflow or give 0 · inf."""
    table = torch.eye(3, device=kit.DEVICE) * 300.0
    v = torch.tensor([[1.0, 0.0, 0.0]], device=kit.DEVICE, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 0.0]], device=kit.DEVICE, requires_grad=True)
    for dtype in DTYPES:
        v.grad = target.grad = None
        loss = vocab_kl(v, target, table.to(dtype), torch.ones(1, device=kit.DEVICE))
        loss.backward()
        assert loss.item() == pytest.approx(300.0)
        assert v.grad is not None and v.grad.tolist() == [[300.0, -300.0, 0.0]]
        assert target.grad is not None and target.grad.isfinite().all()


@kit.kernel_test
def test_broken_inputs_show() -> None:
    v, table = kit.draw(3, 8), kit.draw(40, 8, seed=1)
    v[1, 2] = torch.nan
    assert vocab_kl(v, kit.draw(3, 8, seed=2), table, torch.ones(3, device=kit.DEVICE)).isnan()


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_repeats_and_follows_the_upstream_gradient(dtype: torch.dtype) -> None:
    v, target, table = kit.draw(5, 8).requires_grad_(), kit.draw(5, 8, seed=1), kit.draw(40, 8, seed=2).to(dtype)
    loss = vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE))
    loss.backward(retain_graph=True)
    assert v.grad is not None
    first = v.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(v.grad, 2 * first)
    (-4.0 * loss).backward()
    assert torch.equal(v.grad, -2 * first)
    with torch.no_grad():
        assert not vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE)).requires_grad


@kit.kernel_test
def test_weights_are_constants_on_rows() -> None:
    v, target, table = kit.draw(4, 8).requires_grad_(), kit.draw(4, 8, seed=1), kit.draw(40, 8, seed=2)
    weights = torch.tensor([0.0, 1.0, 0.0, 1e-6], device=kit.DEVICE)
    (gradient,) = torch.autograd.grad(vocab_kl(v, target, table, weights), v)
    (whole,) = torch.autograd.grad(vocab_kl(v, target, table, torch.ones_like(weights)), v)
    assert kit.relative(gradient, weights.unsqueeze(1) * whole) < 1e-6
    assert not gradient[0].any()
    none = vocab_kl(v, target, table, torch.zeros_like(weights))
    (gradient,) = torch.autograd.grad(none, v)
    assert none.item() == 0.0 and not gradient.any()


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_are_read_in_place(dtype: torch.dtype) -> None:
    v, target, table = kit.draw(5, 16), kit.draw(5, 16, seed=1), kit.draw(90, 16, seed=2).to(dtype)
    weights = torch.ones(5, device=kit.DEVICE)
    expected = vocab_kl(v[:, ::2].contiguous(), target[:, 8:].contiguous(), table[20:70, 4:12].contiguous(), weights)
    assert vocab_kl(v[:, ::2], target[:, 8:], table[20:70, 4:12], weights).item() == pytest.approx(expected.item())
