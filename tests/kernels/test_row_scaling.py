"""``row_scaling`` by Triton, and layers that are captured with it, against float64 and against eager code."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import eager_row_scaling, naive
from basic_lite_kernels.direction_loss import TritonTargetStream, capture_layer
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.row_scaling import row_scaling
from basic_lite_kernels.signatures import KernelUnavailable, Kind, RowScaling

torch.set_num_threads(1)

KINDS: list[Kind] = ["cosine", "mse"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def massive_of(D: int, masked: bool) -> Tensor | None:
    """Three dimensions, the last one among them; None where nothing is left out."""
    if not masked:
        return None
    mask = torch.zeros(D, dtype=torch.bool, device=kit.DEVICE)
    mask[[0, D // 2, D - 1]] = True
    return mask


def layers_of(count: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[5, 2, D] each, rows of sizes from 1 to 20, a massive last dimension; neither B nor T is contiguous."""
    sizes = torch.linspace(1, 20, 10, device=kit.DEVICE).view(2, 5, 1)
    layers = [kit.draw(2, 5, D, seed=h) * sizes for h in range(count)]
    for hidden in layers:
        hidden[..., -1] += 50
    return [hidden.to(dtype).transpose(0, 1) for hidden in layers]


def results(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The loss, and gradients for an upstream gradient that is not 1."""
    return [loss.detach(), *torch.autograd.grad(loss * 3.5, inputs)]


@kit.kernel_test
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M, D", [(1, 96), (7, 1025), (3, 4096), (2, 9000)])
def test_norms_and_factors(M: int, D: int, dtype: torch.dtype, masked: bool) -> None:
    (hidden,) = layers_of(1, D, dtype)
    positions, massive = torch.tensor([9, 0, 3, 4, 4, 8, 1], device=kit.DEVICE)[:M], massive_of(D, masked)
    with kit.nan_filled_buffers():
        ours = row_scaling(hidden, positions, massive)
    eager = eager_row_scaling.row_scaling(hidden, positions, massive)
    truth = naive.row_scaling(hidden.double(), positions, massive)
    assert ours.norm.dtype == ours.factor.dtype == torch.float32 and ours.massive is massive
    kit.assert_as_good_as(ours.norm, eager.norm, truth.norm, 2e-7)
    kit.assert_as_good_as(ours.factor, eager.factor, truth.factor, 2e-7)


@kit.kernel_test
def test_rows_without_anything_kept() -> None:
    hidden = torch.zeros(1, 3, 4, device=kit.DEVICE)
    hidden[0, 1, 2], hidden[0, 2] = 5.0, 2.0
    massive = torch.tensor([False, False, True, False], device=kit.DEVICE)
    scaling = row_scaling(hidden, torch.arange(3, device=kit.DEVICE), massive)
    assert scaling.norm.tolist() == [0, 5, 4] and scaling.factor.tolist() == [0, 0, 0.5]
    everything = torch.ones(4, dtype=torch.bool, device=kit.DEVICE)
    assert not row_scaling(hidden, torch.arange(3, device=kit.DEVICE), everything).factor.any()
    nothing = row_scaling(hidden, torch.zeros(0, dtype=torch.int64, device=kit.DEVICE))
    assert nothing.norm.shape == nothing.factor.shape == (0,)
    with pytest.raises(KernelUnavailable, match=r"row_scaling .*float64"):
        row_scaling(hidden.double(), torch.arange(3, device=kit.DEVICE))


@kit.kernel_test
def test_a_broken_row_shows() -> None:
    hidden = kit.draw(1, 3, 8)
    hidden[0, 1, 2] = torch.nan
    for measure in (row_scaling, eager_row_scaling.row_scaling):
        scaling = measure(hidden, torch.arange(3, device=kit.DEVICE), massive_of(8, True))
        assert scaling.norm.isnan().tolist() == scaling.factor.isnan().tolist() == [False, True, False]


@kit.kernel_test
def test_arguments_that_are_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a layer that requires a gradient is measured by the kernel, where no graph is wanted."""
    (hidden,) = layers_of(1, 96)
    positions, massive = torch.tensor([9, 0, 3], device=kit.DEVICE), massive_of(96, True)
    apart = [torch.stack([x, x.flip(0)], dim=1)[:, 0] for x in (positions, massive)]
    hidden.requires_grad_()
    monkeypatch.setattr(eager_row_scaling, "row_scaling", None)
    with torch.no_grad():
        plain, scaling = row_scaling(hidden, positions, massive), row_scaling(hidden, *apart)
        assert torch.equal(plain.norm, scaling.norm) and torch.equal(plain.factor, scaling.factor)
        factor = torch.stack([scaling.factor, scaling.norm], dim=1)[:, 0]
        strided = RowScaling(scaling.norm, factor, scaling.massive)
        assert torch.equal(
            capture_layer(None, hidden, apart[0], 0.5, strided), capture_layer(None, hidden, positions, 0.5, plain)
        )


@kit.kernel_test
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_scaled_stream_is_the_naive_loss(count: int, kind: Kind, masked: bool) -> None:
    M, D = 7, 1100
    layers, massive = layers_of(count, D), massive_of(D, masked)
    positions = torch.tensor([9, 0, 3, 4, 4, 8, 1], device=kit.DEVICE)
    v, weights = kit.draw(M, D, seed=9).requires_grad_(), kit.draw(M, seed=8).abs()
    stream = TritonTargetStream(kind)
    with kit.nan_filled_buffers(), torch.no_grad():
        for h, hidden in enumerate(layers[:-1], start=1):
            stream.add(hidden, positions, 0.3 * h, row_scaling(hidden, positions, massive))
        stream.finish(layers[-1], positions, 0.3 * count, v, row_scaling(layers[-1], positions, massive))
    layer_weights = torch.tensor([0.3 * h for h in range(1, count + 1)], dtype=torch.float64, device=kit.DEVICE)
    exact_layers = [x.double() for x in layers]
    scalings = [naive.row_scaling(x, positions, massive) for x in exact_layers]
    target = naive.refined_target(exact_layers, positions, layer_weights, scalings)
    exact = v.detach().double().requires_grad_()
    truth = results(naive.direction_loss(exact, target, weights.double(), kind), exact)
    assert stream.target is not None and kit.relative(stream.target, target) < 1e-6
    assert massive is None or not stream.target[:, massive].any()
    for mine, true in zip(results(stream.loss(weights), v), truth, strict=True):
        assert kit.relative(mine, true) < 2e-6


@kit.kernel_test
def test_what_is_left_out_may_be_infinite() -> None:
    hidden, massive = kit.draw(1, 3, 96), massive_of(96, masked=True)
    positions, v = torch.arange(3, device=kit.DEVICE), kit.draw(3, 96, seed=1).requires_grad_()
    scaling = row_scaling(hidden, positions, massive)
    hidden[..., -1] = torch.inf
    assert capture_layer(None, hidden, positions, 1.0, scaling).isfinite().all()
    stream = TritonTargetStream("cosine")
    stream.finish(hidden, positions, 1.0, v, scaling)
    assert stream.target is not None and stream.target.isfinite().all()


@kit.kernel_test
@pytest.mark.parametrize("masked", [False, True])
def test_a_scaled_target_with_a_graph(masked: bool) -> None:
    """Not detached: the gradient reaches the layers through the factors too, as eager code has it."""
    positions, weights = torch.tensor([0, 6, 6], device=kit.DEVICE), kit.draw(3, seed=3).abs()
    found = []
    for stream, measure in ((TritonTargetStream("mse"), row_scaling), (EagerTargetStream("mse"), None)):
        layers = [x.detach().requires_grad_() for x in layers_of(2, 8)]
        v, massive = kit.draw(3, 8, seed=9).requires_grad_(), massive_of(8, masked)
        first, last = ((measure or eager_row_scaling.row_scaling)(x, positions, massive) for x in layers)
        stream.add(layers[0], positions, 0.5, first)
        stream.finish(layers[1], positions, 0.5, v, last)
        found.append(results(stream.loss(weights), v, *layers))
    assert found[0][2].any()
    for mine, other in zip(*found, strict=True):
        assert kit.relative(mine, other) < 1e-6


@kit.kernel_test
def test_a_scaled_target_takes_no_more_memory() -> None:
    """v̂ and one gradient, 8 bytes an element, as without scaling; two numbers a row on top."""
    M, D = 40, 4096
    layers = [kit.draw(1, M, D, seed=h).half() for h in range(3)]
    positions, weights, massive = torch.arange(M, device=kit.DEVICE), kit.draw(M, seed=3).abs(), massive_of(D, True)
    v = kit.draw(M, D, seed=4).requires_grad_()

    def whole() -> Tensor:
        stream = TritonTargetStream("cosine")
        for hidden in layers[:-1]:
            stream.add(hidden, positions, 0.5, row_scaling(hidden, positions, massive))
        stream.finish(layers[-1], positions, 0.5, v, row_scaling(layers[-1], positions, massive))
        return torch.autograd.grad(stream.loss(weights) * 2, v)[0]

    gc.collect()  # what goes away while memory is recorded counts as negative
    assert 8 * M * D <= kit.peak_bytes(whole) <= 8 * M * D + 80 * M + 4096
    assert kit.peak_bytes(lambda: row_scaling(layers[0], positions, massive)) <= 8 * M + 1024


@kit.kernel_test
@kit.only_gpu
def test_no_race() -> None:
    M, D = 4 * 576, 4096
    hidden, positions = kit.draw(4, 700, D).bfloat16(), torch.arange(M, device=kit.DEVICE)
    massive = massive_of(D, masked=True)
    first: list[Tensor] = []
    for _ in range(21):
        scaling = row_scaling(hidden, positions, massive)
        again = [scaling.norm, scaling.factor, capture_layer(None, hidden, positions, 0.5, scaling)]
        first = first or again
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
