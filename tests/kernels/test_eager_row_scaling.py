"""``row_scaling`` in eager PyTorch, and layers that are captured with it, against the naive ones in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import eager_direction_loss, eager_row_scaling, naive
from basic_lite_kernels.eager_direction_loss import EagerTargetStream, capture_layer
from basic_lite_kernels.eager_row_scaling import row_scaling
from tests.support import kernels as kit
from tests.support.kernels import draw_on_cpu as draw

torch.set_num_threads(1)

POSITIONS = torch.tensor([1, 2, 7, 9, 3])
MASSIVE = torch.tensor([False, True, False, False, True, False, False])


def layer(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[2, 5, 7], two dimensions massive, one row far longer than the others."""
    hidden = draw(2, 5, 7, seed=seed) * torch.where(MASSIVE, 100.0, 1.0)
    hidden[1, 2] *= 1000
    return hidden.to(dtype)


@pytest.mark.parametrize("massive", [None, MASSIVE], ids=["", "massive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scaled_layers_are_the_naive_target(
    dtype: torch.dtype, massive: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (eager_direction_loss, eager_row_scaling):
        monkeypatch.setattr(file, "SCRATCH_BYTES", 130)  # several chunks, a ragged last one
    layers = [layer(h, dtype) for h in range(3)]
    acc, truths = None, []
    for h, hidden in enumerate(layers):
        before = hidden.clone()
        scaling = row_scaling(hidden, POSITIONS, massive)
        rows = hidden.double().flatten(0, 1)[POSITIONS]
        assert kit.relative(scaling.norm, rows.norm(dim=1)) < 1e-6
        assert kit.relative(rows * scaling.factor.double()[:, None], rows / rows_rms(rows, massive)) < 1e-6
        truths.append(naive.row_scaling(hidden.double(), POSITIONS, massive))
        acc = capture_layer(acc, hidden, POSITIONS, 0.5 + h, scaling)
        assert torch.equal(hidden, before), "a layer's output is not ours to change"
    truth = naive.refined_target(
        [x.double() for x in layers], POSITIONS, torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64), truths
    )
    assert acc is not None and kit.relative(acc, truth) < 1e-6


def rows_rms(rows: Tensor, massive: Tensor | None) -> Tensor:
    kept = rows if massive is None else rows[:, ~massive]
    return kept.square().mean(dim=1, keepdim=True).sqrt()


def test_a_row_without_anything_kept_stays_zero() -> None:
    hidden = torch.zeros(1, 3, 4, requires_grad=True)
    with torch.no_grad():
        hidden[0, 1, 2], hidden[0, 2] = 5.0, 2.0  # row 0 is zero, row 1 nothing but massive
    massive = torch.tensor([False, False, True, False])
    scaling = row_scaling(hidden, torch.arange(3), massive)
    acc = capture_layer(None, hidden, torch.arange(3), 1.0, scaling)
    acc.sum().backward()
    assert scaling.norm.tolist() == [0, 5, 4] and scaling.factor.tolist() == [0, 0, 0.5]
    assert acc.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
    assert hidden.grad is not None and hidden.grad.isfinite().all() and not hidden.grad[0, :2].any()
    everything = row_scaling(hidden.detach(), torch.arange(3), torch.ones(4, dtype=torch.bool))
    assert not everything.factor.any()


def test_no_rows() -> None:
    scaling = row_scaling(layer(0), torch.zeros(0, dtype=torch.int64))
    assert scaling.norm.shape == scaling.factor.shape == (0,)


@pytest.mark.parametrize("massive", [None, MASSIVE], ids=["", "massive"])
def test_the_gradient_goes_through_the_factors(massive: Tensor | None) -> None:
    def scaled(hidden: Tensor) -> Tensor:
        return capture_layer(None, hidden, POSITIONS, 2.0, row_scaling(hidden, POSITIONS, massive))

    assert torch.autograd.gradcheck(scaled, draw(2, 5, 7).double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M, D", [(3, 512), (600, 1024)])
def test_a_scaled_target_takes_no_more_memory(M: int, D: int, dtype: torch.dtype) -> None:
    """v̂ and gradient, 8 bytes an element, as without scaling; two numbers a row and two masks on top."""
    hiddens = [draw(1, M, D, seed=h).to(dtype) for h in range(3)]
    v, massive = draw(M, D, seed=3).requires_grad_(), torch.arange(D) == 7

    def step() -> None:
        stream, positions = EagerTargetStream("cosine"), torch.arange(M)
        with torch.no_grad():
            for hidden in hiddens[:2]:
                stream.add(hidden, positions, 0.5, row_scaling(hidden, positions, massive))
            stream.finish(hiddens[2], positions, 0.5, v, row_scaling(hiddens[2], positions, massive))
        torch.autograd.grad(stream.loss(torch.ones(M)), v)

    assert 8 * M * D < kit.peak_bytes(step, kit.CPU) <= 8 * M * D + 80 * M + 2 * D + 4096
    scratch = min(eager_row_scaling.SCRATCH_BYTES, 4 * M * D)
    assert kit.peak_bytes(lambda: row_scaling(hiddens[0], torch.arange(M), massive), kit.CPU) <= scratch + 32 * M + 4096
