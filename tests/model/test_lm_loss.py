"""The LM loss in chunks: plain autograd's bits, and no product is made twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from basic_lite.model import llava
from basic_lite.model.llava import likelihoods_of, lm_loss
from tests.support.kernels import peak_bytes

R, D, V = 300, 64, 4096


class Head(nn.Linear):
    """A frozen head that counts its products."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.fixture
def head() -> Head:
    torch.manual_seed(0)
    return Head(D, V, bias=False).requires_grad_(False)


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(R, D, dtype=dtype).requires_grad_(), torch.randint(V, (R,))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [R, 128, 7])
def test_the_bits_of_plain_autograd(head: Head, rows: int, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * V * rows)
    hidden, labels = drawn(torch.bfloat16 if autocast else torch.float32)
    divisor = torch.tensor(421)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = lm_loss(hidden, head, labels, divisor)
        assert head.calls == -(-R // rows)
        pieces = zip(hidden.split(rows), labels.split(rows), strict=True)
        sums = [functional.cross_entropy(head(h).float(), y, reduction="sum") for h, y in pieces]
    plain = sum(sums, torch.zeros(())) / divisor
    assert torch.equal(ours, plain)
    found = [torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (ours, plain)]
    assert found[0].dtype == hidden.dtype and torch.equal(*found)
    doubled = torch.autograd.grad(ours * 2, hidden)[0]
    assert torch.equal(doubled, 2 * found[0])


def test_without_a_gradient(head: Head) -> None:
    hidden, labels = drawn()
    expected = functional.cross_entropy(hidden @ head.weight.T, labels)
    with torch.no_grad():
        torch.testing.assert_close(lm_loss(hidden, head, labels, None), expected)
    loss = lm_loss(hidden.detach(), head, labels, None)
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad


def test_what_it_takes_is_the_chunks(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * V * 30)
    hidden, labels = drawn()
    peak = peak_bytes(lambda: lm_loss(hidden, head, labels, None).backward(), torch.device("cpu"))
    assert peak < 3.2 * llava.CHUNK_BYTES + 3 * hidden.nbytes < R * V * 4


def test_log_probabilities_without_a_gradient(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rows: each label has its own position, the last row has the likeliest tokens, the middle one none."""
    hidden = drawn()[0].detach().view(3, R // 3, -1)
    exact = torch.log_softmax(hidden.double() @ head.weight.double().T, -1)  # [3, T, V]
    labels = torch.full(hidden.shape[:2], -100)
    labels[0, 1:] = drawn()[1].view(3, R // 3)[0, 1:]
    labels[2, 5:] = exact[2, 4:-1].argmax(-1)
    chosen = exact[:, :-1].gather(2, labels[:, 1:, None].clamp(0))[..., 0]
    want = -chosen.masked_fill(labels[:, 1:] < 0, 0).sum(1)
    for calls in (1, -(-(2 * (R // 3) - 6) // 30)):
        head.calls = 0
        found = likelihoods_of(hidden, head, labels)
        torch.testing.assert_close(found.nats, want, rtol=1e-5, atol=1e-5)
        assert found.likeliest.tolist() == [False, True, True] and head.calls == calls
        monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * V * 30)
    peak = peak_bytes(lambda: likelihoods_of(hidden, head, labels), torch.device("cpu"))
    assert peak < 2.2 * llava.CHUNK_BYTES + hidden.nbytes < R * V * 4
