"""``TritonTargetStream``: layers, fused pass and loss together are their parts, and the naive loss of all layers."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import naive
from basic_lite_kernels.direction_loss import TritonTargetStream, capture_layer, direction_loss
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.signatures import Kind, TargetStream

torch.set_num_threads(1)

KINDS: list[Kind] = ["cosine", "mse"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The compiler makes one fused multiply-add of a product and a sum, in the fused pass or in its parts, so they differ by
# a rounding of v̂. The interpreter does both the same way, bit for bit.
PARTS_TOLERANCE = 0.0 if kit.INTERPRETED else 2e-6


def finished(stream: TargetStream, layers: list[Tensor], positions: Tensor, v: Tensor) -> TargetStream:
    """The stream after all layers, each with weight 0.3 h."""
    for h, hidden in enumerate(layers[:-1], start=1):
        stream.add(hidden, positions, 0.3 * h)
    stream.finish(layers[-1], positions, 0.3 * len(layers), v)
    return stream


def results(loss: Tensor, v: Tensor) -> list[Tensor]:
    """The loss, and the gradient for an upstream gradient that is not 1."""
    return [loss.detach(), *torch.autograd.grad(loss * 3.5, v)]


@kit.kernel_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_whole_stream_is_the_naive_loss(count: int, kind: Kind) -> None:
    M, D = 7, 100
    layers = [kit.draw(2, 5, D, seed=h) for h in range(count)]
    positions = torch.tensor([9, 0, 3, 4, 4, 8, 1], device=kit.DEVICE)
    v, weights = kit.draw(M, D, seed=9).requires_grad_(), kit.draw(M, seed=8).abs()
    with kit.nan_filled_buffers(), torch.no_grad():  # as in the hook of a checkpointed layer
        stream = finished(TritonTargetStream(kind), layers, positions, v)
    layer_weights = torch.tensor([0.3 * h for h in range(1, count + 1)], dtype=torch.float64, device=kit.DEVICE)
    target = naive.refined_target([x.double() for x in layers], positions, layer_weights)
    exact = v.detach().double().requires_grad_()
    truth = results(naive.direction_loss(exact, target, weights.double(), kind), exact)
    assert stream.target is not None and kit.relative(stream.target, target) < 1e-6
    for mine, true in zip(results(stream.loss(weights), v), truth, strict=True):
        assert kit.relative(mine, true) < 2e-6


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M, D", [(1, 96), (7, 1025), (3, 4096)])
@pytest.mark.parametrize("first", [True, False])
def test_the_fused_pass_is_its_parts(first: bool, M: int, D: int, kind: Kind, dtype: torch.dtype) -> None:
    layers = [kit.draw(5, 2, D, seed=h).to(dtype).transpose(0, 1) for h in range(1 if first else 2)]
    positions = torch.tensor([9, 0, 3, 4, 4, 8, 1], device=kit.DEVICE)[:M]
    parts: Tensor | None = None
    for h, hidden in enumerate(layers, start=1):
        parts = capture_layer(parts, hidden, positions, 0.3 * h)
    assert parts is not None
    v, weights = kit.draw(M, D, seed=2).requires_grad_(), kit.draw(M, seed=3).abs()
    plain = results(direction_loss(v, parts, weights, kind), v)
    layers[-1].requires_grad_()
    with kit.nan_filled_buffers(), torch.no_grad():
        stream = finished(TritonTargetStream(kind), layers, positions, v)
    assert stream.target is not None and not stream.target.requires_grad
    fused = [stream.target, *results(stream.loss(weights), v)]
    for mine, other in zip(fused, [parts, *plain], strict=True):
        assert kit.relative(mine, other) <= PARTS_TOLERANCE


@kit.kernel_test
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_with_a_graph(kind: Kind) -> None:
    """Not detached: the gradient reaches the layers, as eager code has it."""
    positions, weights = torch.tensor([0, 6, 6], device=kit.DEVICE), kit.draw(3, seed=3).abs()
    found = []
    for stream in (TritonTargetStream(kind), EagerTargetStream(kind)):
        layers = [kit.draw(2, 5, 8, seed=h).requires_grad_() for h in range(2)]
        v = kit.draw(3, 8, seed=9).requires_grad_()
        loss = finished(stream, layers, positions, v).loss(weights)
        found.append([loss.detach(), *torch.autograd.grad(loss, [v, *layers])])
    assert found[0][2].any()
    for mine, other in zip(*found, strict=True):
        assert kit.relative(mine, other) < 1e-6


@kit.kernel_test
def test_a_pass_serves_one_backward_unless_kept() -> None:
    v, weights = kit.draw(3, 8).requires_grad_(), kit.draw(3, seed=3).abs()
    positions = torch.arange(3, device=kit.DEVICE)
    stream = finished(TritonTargetStream("cosine"), [kit.draw(1, 3, 8, seed=1)], positions, v)
    losses = [stream.loss(weights) for _ in range(3)]
    (kept,) = torch.autograd.grad(losses[0], v, retain_graph=True)
    (used,) = torch.autograd.grad(losses[1], v)
    assert torch.equal(kept, used)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(losses[2], v)
    constant = finished(TritonTargetStream("cosine"), [kit.draw(1, 3, 8)], positions, v.detach())
    assert not constant.loss(weights).requires_grad


@kit.kernel_test
def test_a_stream_says_when_it_has_no_loss() -> None:
    positions = torch.arange(3, device=kit.DEVICE)
    for stream in (TritonTargetStream("mse"), EagerTargetStream("mse")):
        stream.add(kit.draw(1, 3, 8), positions, 1.0)
        with pytest.raises(RuntimeError, match="once it is finished"):
            stream.loss(kit.draw(3))
    for none in (TritonTargetStream(None), EagerTargetStream(None)):
        finished(none, [kit.draw(1, 3, 8)], positions, kit.draw(3, 8))
        with pytest.raises(RuntimeError, match="given a kind"):
            none.loss(kit.draw(3))


@kit.kernel_test
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_takes_eight_bytes_an_element(kind: Kind) -> None:
    """v̂ and one gradient, from the first layer to the end of the backward."""
    M, D = 40, 4096
    layers = [kit.draw(1, M, D, seed=h).half() for h in range(3)]
    positions, weights = torch.arange(M, device=kit.DEVICE), kit.draw(M, seed=3).abs()
    v = kit.draw(M, D, seed=4).requires_grad_()

    def whole() -> Tensor:
        stream = finished(TritonTargetStream(kind), layers, positions, v)
        return torch.autograd.grad(stream.loss(weights) * 2, v)[0]

    gc.collect()  # what goes away while memory is recorded counts as negative
    assert 8 * M * D <= kit.peak_bytes(whole) <= 8 * M * D + 64 * M + 4096
    target = kit.draw(M, D, seed=5)
    peak = kit.peak_bytes(lambda: torch.autograd.grad(direction_loss(v, target, weights, kind), v))
    assert peak <= 4 * M * D + 64 * M + 4096


@kit.kernel_test
@kit.only_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_no_race(kind: Kind) -> None:
    M, D = 4 * 576, 4096
    layers, positions = [kit.draw(4, 700, D, seed=h).bfloat16() for h in range(2)], torch.arange(M, device=kit.DEVICE)
    v, weights = kit.draw(M, D, seed=2).requires_grad_(), kit.draw(M, seed=3).abs()
    first: list[Tensor] = []
    for _ in range(21):
        stream = finished(TritonTargetStream(kind), layers, positions, v)
        assert stream.target is not None
        again = [stream.target, *results(stream.loss(weights), v)]
        first = first or again
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
