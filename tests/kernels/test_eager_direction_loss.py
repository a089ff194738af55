"""``capture_layer`` and ``direction_loss`` in eager PyTorch against the naive ones in float64."""

from __future__ import annotations

import pytest
import torch

from basic_lite_kernels import eager_direction_loss as eager
from basic_lite_kernels import naive
from basic_lite_kernels.eager_direction_loss import EagerTargetStream, capture_layer, direction_loss
from tests.support import kernels as kit
from tests.support.kernels import draw_on_cpu as draw

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_capture_accumulates_weighted_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "SCRATCH_BYTES", 100)  # several chunks, a ragged last one
    positions = torch.tensor([1, 2, 7, 9, 3])
    layers = [draw(2, 5, 4, seed=h).to(dtype) for h in range(3)]
    acc = None
    for h, hidden in enumerate(layers):
        before = acc
        acc = capture_layer(acc, hidden, positions, 0.5 + h)
        assert before is None or acc is before
    layer_weights = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    truth = naive.refined_target([x.double() for x in layers], positions, layer_weights)
    assert acc is not None and acc.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert kit.relative(acc, truth) < 1e-6


def test_capture_with_a_graph_gives_the_gradient() -> None:
    hidden = draw(2, 5, 4).requires_grad_()
    acc = capture_layer(None, hidden, torch.tensor([0, 6, 6]), 2.0)
    acc = capture_layer(acc, hidden * 3, torch.tensor([0, 6, 6]), 1.0)
    acc.sum().backward()
    expected = torch.zeros(10, 4)
    expected[0], expected[6] = 5.0, 10.0
    assert hidden.grad is not None and torch.equal(hidden.grad.view(10, 4), expected)
    with torch.no_grad():
        assert not capture_layer(None, hidden, torch.tensor([0]), 1.0).requires_grad


# ---- direction_loss


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("nearness", [1.0, 1e-3])
@pytest.mark.parametrize("scratch", [2**20, 64])
def test_direction_loss_and_gradients(
    kind: str, nearness: float, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "SCRATCH_BYTES", scratch)
    v = draw(13, 7)
    target = v + nearness * draw(13, 7, seed=1)
    weights = draw(13, seed=2).abs()
    inputs = [x.clone().requires_grad_() for x in (v, target)]
    exact = [x.double().requires_grad_() for x in (v, target)]
    (3.0 * direction_loss(*inputs, weights, kind)).backward()  # upstream gradient is not 1
    truth = naive.direction_loss(*exact, weights.double(), kind)
    (3.0 * truth).backward()
    value = direction_loss(v, target, weights, kind)
    assert kit.relative(value, truth.detach()) < 1e-5 / nearness**0.5
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert kit.relative(x.grad, y.grad) < (1e-6 if nearness == 1.0 or kind == "mse" else 2e-4)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_gradients_in_16_bits_are_rounded_once(kind: str) -> None:
    inputs = [draw(5, 33, seed=seed).bfloat16() for seed in range(2)]
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        v, target = (x.to(dtype).requires_grad_() for x in inputs)
        found.append(torch.autograd.grad(direction_loss(v, target, torch.linspace(0.1, 1, 5), kind), (v, target)))
    assert all(torch.equal(x, y.bfloat16()) for x, y in zip(*found, strict=True))


def test_direction_gradcheck_in_float64() -> None:
    v, target = draw(4, 5).double().requires_grad_(), draw(4, 5, seed=1).double().requires_grad_()
    for kind in ("cosine", "mse"):
        assert torch.autograd.gradcheck(
            lambda a, b, k=kind: direction_loss(a, b, torch.rand(4) * 0 + 0.3, k), (v, target)
        )


def test_zero_rows_are_defined() -> None:
    v, target = torch.zeros(3, 4), torch.zeros(3, 4)
    v[0, 0], target[1, 0] = 1.0, 1.0
    v.requires_grad_(), target.requires_grad_()
    loss = direction_loss(v, target, torch.tensor([1.0, 10.0, 100.0]), "cosine")
    loss.backward()
    assert loss.item() == 222.0  # cosine counts as 0
    assert v.grad is not None and target.grad is not None
    assert not v.grad.any() and not target.grad.any()


def test_direction_kinds_are_named() -> None:
    with pytest.raises(ValueError, match="cosine"):
        direction_loss(draw(1, 2), draw(1, 2), torch.ones(1), "angle")  # type: ignore[arg-type]


def test_tiny_and_huge_rows_keep_their_directions() -> None:
    """1/norm of a tiny row times another's is beyond float32; the gradient isn't."""
    generator = torch.Generator().manual_seed(0)
    v, target = (torch.randn(4, 32, generator=generator) for _ in range(2))
    sizes = torch.tensor([1e-18, 3e-17, 1e15, 1.0]).unsqueeze(1)
    x, y = (v * sizes).requires_grad_(), target * sizes.flip(0)
    exact = x.detach().double().requires_grad_()
    direction_loss(x, y, torch.full((4,), 1e-6)).backward()
    naive.direction_loss(exact, y.double(), torch.full((4,), 1e-6, dtype=torch.float64), "cosine").backward()
    for row in range(4):
        assert x.grad is not None and exact.grad is not None and kit.relative(x.grad[row], exact.grad[row]) < 1e-5


# ---- memory


def test_direction_and_capture_memory_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "SCRATCH_BYTES", 2**14)
    M, D = 2000, 64
    v, target, weights = draw(M, D).requires_grad_(), draw(M, D, seed=1), torch.ones(M)
    slack = 2**14 + 64
    loss = direction_loss(v, target, weights)
    assert kit.peak_bytes(lambda: direction_loss(v, target, weights), kit.CPU) <= slack + 64 * M
    assert kit.peak_bytes(loss.backward, kit.CPU) <= 4 * M * D + 64 * M
    hidden, positions = draw(2, M, D).bfloat16(), torch.arange(M)
    acc = torch.zeros(M, D)
    assert kit.peak_bytes(lambda: capture_layer(acc, hidden, positions, 0.5), kit.CPU) <= slack


@pytest.mark.parametrize("M, D", [(3, 512), (600, 1024)])
def test_das_takes_eight_bytes_an_element(M: int, D: int) -> None:
    """v̂ and gradient; whatever scratch there is has gone before the gradient comes."""
    hiddens, v, weights = [draw(1, M, D, seed=h) for h in range(3)], draw(M, D, seed=3), torch.ones(M)
    v.requires_grad_()

    def step() -> None:
        stream = EagerTargetStream("cosine")
        with torch.no_grad():
            for hidden in hiddens[:2]:
                stream.add(hidden, torch.arange(M), 0.5)
            stream.finish(hiddens[2], torch.arange(M), 0.5, v)
        torch.autograd.grad(stream.loss(weights), v)

    assert 8 * M * D < kit.peak_bytes(step, kit.CPU) <= 8 * M * D + 64 * M + 4096
