"""The three operations against their definitions, written out naively in float64."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from basic_lite_kernels import dispatch, reference
from tests.support.kernels import peak_bytes

torch.set_num_threads(1)


def relative(value: Tensor, truth: Tensor) -> float:
    """Error relative to the size of the whole tensor."""
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-300))


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


class Sizes(TorchDispatchMode):
    """Remembers the shapes of everything that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.shapes.append(tuple(value.shape))
        return out


# ---- capture_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_capture_accumulates_weighted_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCRATCH_BYTES", 100)  # several chunks, a ragged last one
    positions = torch.tensor([1, 2, 7, 9, 3])
    layers = [draw(2, 5, 4, seed=h).to(dtype) for h in range(3)]
    acc = None
    for h, hidden in enumerate(layers):
        before = acc
        acc = reference.capture_layer(acc, hidden, positions, 0.5 + h)
        assert before is None or acc is before
    truth = sum((0.5 + h) * x.double().reshape(10, 4)[positions] for h, x in enumerate(layers))
    assert acc is not None and acc.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative(acc, truth) < 1e-6


def test_capture_with_a_graph_gives_the_gradient() -> None:
    hidden = draw(2, 5, 4).requires_grad_()
    acc = reference.capture_layer(None, hidden, torch.tensor([0, 6, 6]), 2.0)
    acc = reference.capture_layer(acc, hidden * 3, torch.tensor([0, 6, 6]), 1.0)
    acc.sum().backward()
    expected = torch.zeros(10, 4)
    expected[0], expected[6] = 5.0, 10.0
    assert hidden.grad is not None and torch.equal(hidden.grad.view(10, 4), expected)
    with torch.no_grad():
        assert not reference.capture_layer(None, hidden, torch.tensor([0]), 1.0).requires_grad


# ---- direction_loss


def naive_direction(v: Tensor, target: Tensor, weights: Tensor, kind: str) -> Tensor:
    if kind == "mse":
        return (weights * (v - target).square().mean(1)).sum()
    return (
        weights * (v / v.norm(dim=1, keepdim=True) - target / target.norm(dim=1, keepdim=True)).square().sum(1)
    ).sum()


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("nearness", [1.0, 1e-3])
@pytest.mark.parametrize("scratch", [2**20, 64])
def test_direction_loss_and_gradients(
    kind: str, nearness: float, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "SCRATCH_BYTES", scratch)
    v = draw(13, 7)
    target = v + nearness * draw(13, 7, seed=1)
    weights = draw(13, seed=2).abs()
    inputs = [x.clone().requires_grad_() for x in (v, target)]
    exact = [x.double().requires_grad_() for x in (v, target)]
    (3.0 * reference.direction_loss(*inputs, weights, kind)).backward()  # upstream gradient is not 1
    truth = naive_direction(*exact, weights.double(), kind)
    (3.0 * truth).backward()
    value = reference.direction_loss(v, target, weights, kind)
    assert relative(value, truth.detach()) < 1e-5 / nearness**0.5
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert relative(x.grad, y.grad) < (1e-6 if nearness == 1.0 or kind == "mse" else 2e-4)


def test_direction_gradcheck_in_float64() -> None:
    v, target = draw(4, 5).double().requires_grad_(), draw(4, 5, seed=1).double().requires_grad_()
    for kind in ("cosine", "mse"):
        assert torch.autograd.gradcheck(
            lambda a, b, k=kind: reference.direction_loss(a, b, torch.rand(4) * 0 + 0.3, k), (v, target)
        )


def test_zero_rows_are_defined() -> None:
    v, target = torch.zeros(3, 4), torch.zeros(3, 4)
    v[0, 0], target[1, 0] = 1.0, 1.0
    v.requires_grad_(), target.requires_grad_()
    loss = reference.direction_loss(v, target, torch.tensor([1.0, 10.0, 100.0]), "cosine")
    loss.backward()
    assert loss.item() == 222.0  # cosine counts as 0
    assert v.grad is not None and target.grad is not None
    assert not v.grad.any() and not target.grad.any()


def test_direction_kinds_are_named() -> None:
    with pytest.raises(ValueError, match="cosine"):
        reference.direction_loss(draw(1, 2), draw(1, 2), torch.ones(1), "angle")  # type: ignore[arg-type]


# ---- vocab_kl


def naive_kl(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, scale: float, excluded: Tensor | None
) -> Tensor:
    table = table.double() if excluded is None else table.double()[~excluded]
    log_p, log_q = (torch.log_softmax(scale * x @ table.T, -1) for x in (target, v))
    return (weights * (log_p.exp() * (log_p - log_q)).sum(1)).sum()


@pytest.mark.parametrize("logit_scale", [0.01, 1.0, 16.0])
@pytest.mark.parametrize("nearness", [1.0, 0.05])
@pytest.mark.parametrize("excludes", [False, True])
def test_vocab_kl_and_gradients(logit_scale: float, nearness: float, excludes: bool) -> None:
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
    loss = reference.vocab_kl(*inputs, table, weights, scale=0.7, excluded=excluded, chunk_rows=4)
    (5.0 * loss).backward()
    truth = naive_kl(*exact, table, weights.double(), 0.7, excluded)
    (5.0 * truth).backward()
    assert relative(loss.detach(), truth.detach()) < 1e-5
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert relative(x.grad, y.grad) < 2e-5


@pytest.mark.parametrize("gap", [1e-4, 0.01, 0.045, 0.055, 0.2])
def test_vocab_kl_terms_on_both_sides_of_the_series(gap: float) -> None:
    """In float64, where only the cut of the series is left; log p and log q differ by about ``gap``."""
    v, table = draw(4, 8).double(), draw(30, 8, seed=2).double() / 8**0.5
    target = v + gap * draw(4, 8, seed=1).double().clamp(-1, 1)
    truth = naive_kl(v, target, table, torch.ones(4).double(), 1.0, None)
    tolerance = 1e-7 + 1e-15 / gap**2  # the naive difference cancels
    assert relative(reference.vocab_kl(v, target, table, torch.ones(4)), truth) < tolerance


def test_vocab_kl_gradcheck_in_float64() -> None:
    v, target = draw(3, 4).double().requires_grad_(), draw(3, 4, seed=1).double().requires_grad_()
    table, weights = draw(9, 4, seed=2).double(), torch.tensor([0.2, 1.0, 3.0])
    assert torch.autograd.gradcheck(
        lambda a, b: reference.vocab_kl(a, b, table, weights, scale=1.3, chunk_rows=2), (v, target)
    )


def test_vocab_kl_is_zero_where_both_agree_and_positive_elsewhere() -> None:
    v, table = draw(6, 8).requires_grad_(), draw(50, 8, seed=1)
    loss = reference.vocab_kl(v, v.detach().clone(), table, torch.ones(6))
    loss.backward()
    assert loss.item() == 0.0 and v.grad is not None and not v.grad.any()
    for seed in range(20):
        nearby = v.detach() + 1e-4 * draw(6, 8, seed=seed)
        assert reference.vocab_kl(v, nearby, table, torch.ones(6)).item() > 0


def test_vocab_kl_survives_one_sided_certainty() -> None:
    """p and q that share no support: exp would overflow or give 0 · inf."""
    table = torch.eye(3) * 300.0
    v = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    loss = reference.vocab_kl(v, torch.tensor([[0.0, 1.0, 0.0]]), table, torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert v.grad is not None and torch.allclose(v.grad, torch.tensor([[300.0, -300.0, 0.0]]))


def test_vocab_kl_bf16_table_counts_as_its_values_even_under_autocast() -> None:
    v, target, table = draw(5, 16), draw(5, 16, seed=1), draw(40, 16, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reference.vocab_kl(v, target, table, torch.ones(5))
    truth = naive_kl(v.double(), target.double(), table, torch.ones(5).double(), 1.0, None)
    assert loss.dtype == torch.float32 and relative(loss, truth) < 1e-5


def test_vocab_kl_repeated_backward_and_no_grad() -> None:
    v, target, table = draw(5, 8).requires_grad_(), draw(5, 8, seed=1), draw(20, 8, seed=2)
    loss = reference.vocab_kl(v, target, table, torch.ones(5))
    loss.backward(retain_graph=True)
    assert v.grad is not None
    first = v.grad.clone()
    loss.backward()
    assert torch.equal(v.grad, 2 * first)
    with torch.no_grad():
        assert not reference.vocab_kl(v, target, table, torch.ones(5)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M", [200, 800])
def test_vocab_kl_memory_is_its_formula(M: int, dtype: torch.dtype) -> None:
    D, V, R = 32, 4000, 64
    v, target, table = draw(M, D).requires_grad_(), draw(M, D, seed=1), draw(V, D, seed=2).to(dtype)
    weights = torch.ones(M)
    with Sizes() as made:
        loss = reference.vocab_kl(v, target, table, weights, chunk_rows=R)
    assert max(torch.Size(s).numel() for s in made.shapes) == R * V, "never [M, V]"
    peak = peak_bytes(lambda: reference.vocab_kl(v, target, table, weights, chunk_rows=R))
    assert 8 * R * V < peak <= 4 * M * D + 10 * R * V + 64 * M
    peak = peak_bytes(loss.backward)
    assert peak <= 4 * M * D + 64 * M


def test_direction_and_capture_memory_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCRATCH_BYTES", 2**14)
    M, D = 2000, 64
    v, target, weights = draw(M, D).requires_grad_(), draw(M, D, seed=1), torch.ones(M)
    slack = 2**14 + 64
    loss = reference.direction_loss(v, target, weights)
    assert peak_bytes(lambda: reference.direction_loss(v, target, weights)) <= slack + 64 * M
    assert peak_bytes(loss.backward) <= 4 * M * D + 64 * M
    hidden, positions = draw(2, M, D).bfloat16(), torch.arange(M)
    acc = torch.zeros(M, D)
    assert peak_bytes(lambda: reference.capture_layer(acc, hidden, positions, 0.5)) <= slack


@pytest.mark.parametrize("M, D", [(3, 512), (600, 1024)])
def test_das_takes_eight_bytes_an_element(M: int, D: int) -> None:
    """Machine and gradient; whatever scratch there is has gone before the gradient comes."""
    hiddens, v, weights = [draw(1, M, D, seed=h) for h in range(3)], draw(M, D, seed=3), torch.ones(M)
    v.requires_grad_()

    def step() -> None:
        acc = None
        with torch.no_grad():
            for hidden in hiddens:
                acc = reference.capture_layer(acc, hidden, torch.arange(M), 0.5)
        assert acc is not None
        torch.autograd.grad(reference.direction_loss(v, acc, weights), v)

    assert 8 * M * D < peak_bytes(step) <= 8 * M * D + 64 * M + 4096


def test_tiny_and_huge_rows_keep_their_directions() -> None:
    """1/norm of a tiny row times another's is beyond float32; the gradient isn't."""
    generator = torch.Generator().manual_seed(0)
    v, target = (torch.randn(4, 32, generator=generator) for _ in range(2))
    sizes = torch.tensor([1e-18, 3e-17, 1e15, 1.0]).unsqueeze(1)
    x, y = (v * sizes).requires_grad_(), target * sizes.flip(0)
    exact = x.detach().double().requires_grad_()
    reference.direction_loss(x, y, torch.full((4,), 1e-6)).backward()
    naive_direction(exact, y.double(), torch.full((4,), 1e-6, dtype=torch.float64), "cosine").backward()
    for row in range(4):
        assert x.grad is not None and exact.grad is not None and relative(x.grad[row], exact.grad[row]) < 1e-5


def test_a_window_of_nothing_is_refused() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    keys = {"text_queries": mask, "visual": mask, "valid": mask}
    with pytest.raises(ValueError, match="sliding_window is 0"):
        reference.attention_mass(draw(1, 2, 4, 8), draw(1, 2, 4, 8), scaling=1.0, sliding_window=0, **keys)


# ---- attention_mass


def naive_mass(
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


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window,cap", [(None, None), (5, None), (None, 2.0)])
@pytest.mark.parametrize("chunk", [1, 150, 2**22])
def test_attention_mass(heads: tuple[int, int], window: int | None, cap: float | None, chunk: int) -> None:
    B, T, d = 4, 14, 6
    query, key = draw(B, heads[0], T, d), draw(B, heads[1], T, d, seed=1)
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, :3] = False  # left padding
    valid[1, 10:] = False  # right padding
    visual = torch.zeros_like(valid)
    visual[0, 4:8] = True
    visual[1, 1:3] = visual[1, 6:8] = True  # two images
    visual[2, 5:9] = True
    text = valid & ~visual
    text[0, :4] = text[1, 0] = text[2, :5] = False
    text[3] = True  # text only
    arguments = (0.4, text, visual, valid, window, cap)
    truth = naive_mass(query, key, *arguments)
    mass = reference.attention_mass(
        query, key, scaling=0.4, text_queries=text, visual=visual, valid=valid,
        sliding_window=window, softcap=cap, chunk_elements=chunk,
    )  # fmt: skip
    assert mass.dtype == torch.float32 and mass.shape == (B, T)
    assert relative(mass, truth) < 1e-6
    assert not mass[3].any() and not mass[~visual].any()


def test_attention_mass_reads_strided_bf16_in_float32_and_is_deterministic() -> None:
    query = draw(2, 12, 4, 8).bfloat16().transpose(1, 2)  # as a model hands it over: [B, T, H, d] transposed
    key = draw(2, 12, 2, 8, seed=1).bfloat16().transpose(1, 2)
    visual = torch.zeros(2, 12, dtype=torch.bool)
    visual[:, 2:6] = True
    text = ~visual
    text[:, :2] = False
    masks = {"text_queries": text, "visual": visual, "valid": torch.ones_like(text)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mass = reference.attention_mass(query, key, scaling=0.5, **masks)
        again = reference.attention_mass(query, key, scaling=0.5, **masks)
    truth = naive_mass(query, key, 0.5, text, visual, torch.ones_like(text), None, None)
    assert relative(mass, truth) < 1e-6 and torch.equal(mass, again)


def test_attention_mass_never_makes_the_map() -> None:
    B, H, T, d = 2, 4, 60, 8
    query, key = draw(B, H, T, d), draw(B, 2, T, d, seed=1)
    visual = torch.zeros(B, T, dtype=torch.bool)
    visual[:, 2:40] = True
    text = ~visual
    text[:, :2] = False
    with Sizes() as made:
        reference.attention_mass(
            query,
            key,
            scaling=0.3,
            text_queries=text,
            visual=visual,
            valid=torch.ones_like(text),
            chunk_elements=1000,
        )
    assert not [s for s in made.shapes if s[-2:] == (T, T)]


def test_attention_mass_memory_is_bounded() -> None:
    """Ten times the samples take no more than their own result."""
    chunk = 2000
    peaks = []
    for B in (1, 10):
        T = 40
        query, key = draw(B, 4, T, 8), draw(B, 2, T, 8, seed=1)
        visual = torch.zeros(B, T, dtype=torch.bool)
        visual[:, 2:20] = True
        masks = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
        arguments = {"query": query, "key": key, "scaling": 0.3, "chunk_elements": chunk, **masks}
        peaks.append(peak_bytes(partial(reference.attention_mass, **arguments)))
        assert peaks[-1] <= 14 * chunk + 40 * B * T
    assert peaks[1] - peaks[0] <= 9 * 40 * T


# ---- dispatch


def test_auto_says_what_it_chose_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choice = dispatch.choose("auto")
    assert choice.operations is reference
    assert "reference" in caplog.text and choice.reason in caplog.text


def test_an_explicit_choice_that_is_not_there_raises() -> None:
    with pytest.raises(dispatch.KernelUnavailable, match="Triton"):
        dispatch.choose("triton")
    with pytest.raises(ValueError, match="cuda"):
        dispatch.choose("cuda")  # type: ignore[arg-type]
