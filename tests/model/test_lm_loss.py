"""The LM loss in chunks: plain autograd's bits, and no product is made twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from basic_lite.model import llava
from basic_lite.model.llava import lm_loss, token_nats
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
    hidden, labels = drawn()
    exact = torch.log_softmax(hidden.detach().double() @ head.weight.double().T, -1)
    want = -exact.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(token_nats(hidden, head, labels).double(), want, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(llava, "CHUNK_BYTES", 4 * V * 30)
    head.calls = 0
    torch.testing.assert_close(token_nats(hidden, head, labels).double(), want, rtol=1e-5, atol=1e-5)
    assert head.calls == R // 30
    peak = peak_bytes(lambda: token_nats(hidden, head, labels), torch.device("cpu"))
    assert peak < 2.2 * llava.CHUNK_BYTES < R * V * 4
