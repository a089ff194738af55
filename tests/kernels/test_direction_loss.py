"""``capture_layer`` and ``direction_loss`` by Triton against float64, and against eager code of the same types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import direction_loss as file
from basic_lite_kernels import eager_direction_loss, naive
from basic_lite_kernels.direction_loss import TritonTargetStream, capture_layer, direction_loss
from basic_lite_kernels.signatures import KernelUnavailable

torch.set_num_threads(1)

KINDS = ["cosine", "mse"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # no kernel here has a product of tiles: bf16 is right too
# Beyond eager code's error: the order of a float32 sum, and what a gradient loses when its type rounds it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# M × D: one row, many rows, rows of a 3B, 7B and 13B model, and the longest block.
SHAPES = [(1, 96), (1153 if kit.ON_GPU else 65, 33), (3, 2560), (2, 4096), (2, 5120), (1, 9000)]
SHAPES += [(575, 5120), (1153, 4096)] if kit.ON_GPU else []


def results(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The loss, and gradients for an upstream gradient that is not 1."""
    return [loss.detach(), *torch.autograd.grad(loss * 3.5, inputs)]


def compare(v: Tensor, target: Tensor, weights: Tensor, kind: str, tolerance: float | None = None) -> None:
    exact = [x.double().requires_grad_() for x in (v, target)]
    truth = results(naive.direction_loss(exact[0], exact[1], weights.double(), kind), *exact)
    eager_inputs = [x.clone().requires_grad_() for x in (v, target)]
    eager = results(naive.direction_loss(eager_inputs[0], eager_inputs[1], weights.to(v.dtype), kind), *eager_inputs)
    inputs = [x.clone().requires_grad_() for x in (v, target)]
    with kit.nan_filled_buffers():
        ours = results(direction_loss(inputs[0], inputs[1], weights, kind), *inputs)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == v.dtype and ours[2].dtype == target.dtype
    for mine, other, true in zip(ours, eager, truth, strict=True):
        kit.assert_as_good_as(mine, other, true, TOLERANCE[v.dtype] if tolerance is None else tolerance)


# ---- capture_layer


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M, D", [(1, 96), (7, 1025), (3, 2560)])
def test_capture_accumulates_weighted_rows(M: int, D: int, dtype: torch.dtype) -> None:
    B, T = 3, 5
    order = torch.randperm(B * T, generator=torch.Generator().manual_seed(0))
    positions = order[:M].to(kit.DEVICE)
    layers = [kit.draw(T, B, D, seed=h).to(dtype).transpose(0, 1) for h in range(3)]  # neither B nor T is contiguous
    layers[1] = kit.draw(B, T, 2 * D, seed=1).to(dtype)[:, :, D:]
    layers[2] = kit.draw(B, D, T, seed=2).to(dtype).transpose(1, 2)  # nor is D: copied
    acc: Tensor | None = None
    plain: Tensor | None = None
    for h, hidden in enumerate(layers):
        before = acc
        with kit.nan_filled_buffers():
            acc = capture_layer(acc, hidden, positions, 0.5 + h)
        assert before is None or acc is before
        plain = eager_direction_loss.capture_layer(plain, hidden, positions, 0.5 + h)
    layer_weights = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64, device=kit.DEVICE)
    truth = naive.refined_target([x.double() for x in layers], positions, layer_weights)
    assert acc is not None and plain is not None and acc.dtype == torch.float32 and acc.shape == (M, D)
    kit.assert_as_good_as(acc, plain, truth, 1e-7)


@kit.kernel_test
def test_capture_with_a_graph_gives_the_gradient() -> None:
    hidden = kit.draw(2, 5, 4).requires_grad_()
    positions = torch.tensor([0, 6, 6], device=kit.DEVICE)
    acc = capture_layer(None, hidden, positions, 2.0)
    acc = capture_layer(acc, hidden * 3, positions, 1.0)
    acc.sum().backward()
    expected = torch.zeros(10, 4)
    expected[0], expected[6] = 5.0, 10.0
    assert hidden.grad is not None and torch.equal(hidden.grad.view(10, 4).cpu(), expected)
    with torch.no_grad():
        assert not capture_layer(None, hidden, positions, 1.0).requires_grad


@kit.kernel_test
def test_capture_of_nothing_and_of_what_it_cannot_take() -> None:
    nothing = torch.zeros(0, dtype=torch.int64, device=kit.DEVICE)
    assert capture_layer(None, kit.draw(2, 3, 8), nothing, 1.0).shape == (0, 8)
    one = torch.zeros(1, dtype=torch.int64, device=kit.DEVICE)
    with pytest.raises(KernelUnavailable, match=r"capture_layer .*float64"):
        capture_layer(None, kit.draw(2, 3, 8).double(), one, 1.0)
    for odd in (kit.draw(1, 8).half(), kit.draw(2, 8), kit.draw(1, 16)[:, ::2]):
        with pytest.raises(ValueError, match="contiguous float32"):
            capture_layer(odd, kit.draw(2, 3, 8), one, 1.0)


# ---- direction_loss


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M, D", SHAPES)
def test_loss_and_both_gradients(M: int, D: int, kind: str, dtype: torch.dtype) -> None:
    v, target = kit.draw(M, D).to(dtype), kit.draw(M, D, seed=1).to(dtype)
    compare(v, target, kit.draw(M, seed=2).abs(), kind)


@kit.kernel_test
@given(
    M=st.integers(1, 9),
    D=st.integers(1, 1200),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_loss_and_both_gradients_of_any_shape(M: int, D: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    v, target = kit.draw(M, D, seed=seed).to(dtype), kit.draw(M, D, seed=seed + 100).to(dtype)
    if D == 1 and kind == "cosine":
        return  # the gradient is 0, and relative error means nothing
    compare(v, target, kit.draw(M, seed=2).abs(), kind)


@kit.kernel_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e4, 1e12])
def test_extreme_sizes(scale: float, kind: str) -> None:
    v, target = kit.draw(4, 200, scale=scale), kit.draw(4, 200, seed=1, scale=scale if kind == "mse" else 1 / scale)
    compare(v, target, kit.draw(4, seed=2).abs(), kind)


@kit.kernel_test
def test_a_small_distance_keeps_its_digits() -> None:
    v = kit.draw(6, 512)
    compare(v, v * 3 + 1e-3 * kit.draw(6, 512, seed=1), kit.draw(6, seed=2).abs(), "cosine", tolerance=2e-4)
    same = v.clone().requires_grad_()
    assert direction_loss(same, v, torch.ones(6, device=kit.DEVICE), "mse").item() == 0


@kit.kernel_test
@pytest.mark.parametrize("fused", [False, True])
def test_zero_rows_are_defined(fused: bool) -> None:
    v, target = torch.zeros(3, 4, device=kit.DEVICE), torch.zeros(3, 4, device=kit.DEVICE)
    v[0, 0], target[1, 0] = 1.0, 1.0
    v.requires_grad_()
    weights = torch.tensor([1.0, 10.0, 100.0], device=kit.DEVICE)
    if fused:
        stream = TritonTargetStream("cosine")
        stream.finish(target[None], torch.arange(3, device=kit.DEVICE), 1.0, v)
        loss = stream.loss(weights)
    else:
        target.requires_grad_()
        loss = direction_loss(v, target, weights)
    loss.backward()
    assert loss.item() == 222.0  # cosine counts as 0
    assert v.grad is not None and not v.grad.any()
    assert fused or (target.grad is not None and not target.grad.any())


@kit.kernel_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_rows_show(broken: float, kind: str) -> None:
    """A row with NaN or infinity is no zero row, whose distance is 2."""
    for which in range(2):
        rows = [kit.draw(3, 8), kit.draw(3, 8, seed=1)]
        rows[which][1, 2] = broken
        assert not direction_loss(*rows, torch.ones(3, device=kit.DEVICE), kind).isfinite()
        assert not eager_direction_loss.direction_loss(*rows, torch.ones(3, device=kit.DEVICE), kind).isfinite()
        huge = [kit.draw(3, 8), kit.draw(3, 8, seed=1)]
        huge[which] *= 1e30  # its squares are beyond float32
        assert kind == "mse" or direction_loss(*huge, torch.ones(3, device=kit.DEVICE), kind).item() == 6.0


@kit.kernel_test
def test_inputs_that_are_not_contiguous() -> None:
    plain = kit.draw(5, 40), kit.draw(5, 40, seed=1), kit.draw(5, seed=2).abs()
    apart = [torch.stack([x, x.flip(0)], dim=-1)[..., 0] for x in plain]
    found, expected = (
        results(direction_loss(v.requires_grad_(), target.requires_grad_(), weights), v, target)
        for v, target, weights in (apart, plain)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@kit.kernel_test
def test_no_rows() -> None:
    v = kit.draw(0, 8).requires_grad_()
    loss = direction_loss(v, kit.draw(0, 8), kit.draw(0))
    loss.backward()
    assert loss.item() == 0 and v.grad is not None and v.grad.shape == (0, 8)


@kit.kernel_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeated_backward_and_no_grad(dtype: torch.dtype) -> None:
    v, target, weights = kit.draw(5, 40).to(dtype).requires_grad_(), kit.draw(5, 40, seed=1), kit.draw(5, seed=2).abs()
    loss = direction_loss(v, target, weights)
    (first,) = torch.autograd.grad(loss, v, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, v, retain_graph=True)
    (last,) = torch.autograd.grad(2 * loss, v)  # in place, and the earlier results stay what they were
    assert torch.equal(first, kept) and torch.equal(second, kept) and torch.equal(last, 2 * kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, v)
    with torch.no_grad():
        assert not direction_loss(v, target, weights).requires_grad
        assert kit.peak_bytes(lambda: direction_loss(v, target, weights)) < 4 * v.numel()  # no gradient is made
    assert not direction_loss(v.detach(), target, weights).requires_grad


@kit.kernel_test
def test_gradients_add_up_with_another_loss_on_v() -> None:
    weights, target = kit.draw(5, seed=2).abs(), kit.draw(5, 40, seed=1)
    source = kit.draw(5, 40).requires_grad_()
    v = source * 2  # as a projector's output: the engine sums up gradients in place
    (direction_loss(v, target, weights) + (v * target).sum()).backward()
    plain = source.detach().clone().requires_grad_()
    (eager_direction_loss.direction_loss(plain * 2, target, weights) + (plain * 2 * target).sum()).backward()
    assert source.grad is not None and plain.grad is not None and kit.relative(source.grad, plain.grad) < 1e-6


@kit.kernel_test
def test_autocast_changes_nothing() -> None:
    v, target, weights = kit.draw(5, 40).requires_grad_(), kit.draw(5, 40, seed=1), kit.draw(5, seed=2).abs()
    plain = results(direction_loss(v, target, weights), v)
    with torch.autocast(kit.DEVICE.type, dtype=torch.bfloat16):
        cast = results(direction_loss(v, target, weights), v)
        acc = capture_layer(None, kit.draw(1, 5, 40).half(), torch.arange(5, device=kit.DEVICE), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True)) and acc.dtype == torch.float32


@kit.kernel_test
def test_a_compiled_caller_works() -> None:
    v, target, weights = kit.draw(5, 40).requires_grad_(), kit.draw(5, 40, seed=1), kit.draw(5, seed=2).abs()
    positions = torch.arange(5, device=kit.DEVICE)

    def step(x: Tensor) -> Tensor:
        acc = capture_layer(None, target[None], positions, 0.5)
        acc = capture_layer(acc, target[None] + 1, positions, 0.5)
        return direction_loss(x * 2, acc, weights) + 1

    backend = "inductor" if kit.ON_GPU else "eager"  # tracing is what could break
    compiled = torch.compile(step, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(results(compiled(v), v), results(step(v), v), strict=True))


@kit.kernel_test
def test_bad_arguments_are_named() -> None:
    v, weights = kit.draw(2, 4), kit.draw(2)
    with pytest.raises(ValueError, match="cosine"):
        direction_loss(v, v, weights, "angle")
    with pytest.raises(ValueError, match="must be"):
        direction_loss(v, kit.draw(2, 5), weights)
    with pytest.raises(KernelUnavailable, match=f"rows of {file.LONGEST_ROW + 1} numbers"):
        direction_loss(kit.draw(1, file.LONGEST_ROW + 1), kit.draw(1, file.LONGEST_ROW + 1), kit.draw(1))
    for one, other in ((v.double(), v), (v, v.double())):
        with pytest.raises(KernelUnavailable, match="float64"):
            direction_loss(one, other, weights)
    with pytest.raises(ValueError, match="weights"):
        direction_loss(v, v, kit.draw(1))


@kit.kernel_test
def test_the_longest_row_is_taken() -> None:
    D = file.LONGEST_ROW
    v, target, weights = kit.draw(1, D).requires_grad_(), kit.draw(1, D, seed=1), kit.draw(1, seed=2).abs()
    assert file.supports(v) is None
    truth = results(
        naive.direction_loss(exact := v.detach().double().requires_grad_(), target.double(), weights), exact
    )
    for mine, true in zip(results(direction_loss(v, target, weights), v), truth, strict=True):
        assert kit.relative(mine, true) < TOLERANCE[torch.float32]
