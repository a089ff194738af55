"""``vocab_kl`` by Triton: what it is called from, what it refuses, and what it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import eager_vocab_kl
from basic_lite_kernels import vocab_kl as file
from basic_lite_kernels.signatures import KernelUnavailable
from basic_lite_kernels.vocab_kl import vocab_kl

pytestmark = pytest.mark.usefixtures("several_blocks")
torch.set_num_threads(1)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# ---- what it is called from


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
def test_under_autocast(dtype: torch.dtype) -> None:
    v, target, table = kit.draw(5, 16).requires_grad_(), kit.draw(5, 16, seed=1), kit.draw(40, 16, seed=2).to(dtype)
    plain = kit.loss_and_gradients(vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE)), v)
    with torch.autocast(kit.DEVICE.type, dtype=torch.bfloat16):
        inside = kit.loss_and_gradients(vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE)), v)
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)


@kit.kernel_test
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=kit.only_gpu)])
def test_under_torch_compile(backend: str) -> None:
    target, table = kit.draw(5, 16, seed=1), kit.draw(40, 16, seed=2).to(torch.bfloat16)
    weights = kit.draw(5, seed=3).abs()

    def step(v: Tensor) -> Tensor:
        return 3 * vocab_kl(v * 2, target, table, weights, scale=0.5) + v.square().sum()

    v = kit.draw(5, 16).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for a, b in zip(kit.loss_and_gradients(step(v), v), kit.loss_and_gradients(compiled(v), v), strict=True):
        assert kit.relative(a, b) < 1e-6


@kit.kernel_test
@pytest.mark.parametrize("wants", [(False, False), (True, False), (True, True), (False, True)])
def test_the_operator_keeps_its_promises(wants: tuple[bool, bool]) -> None:
    tensors = kit.draw(5, 16), kit.draw(5, 16, seed=1), kit.draw(40, 16, seed=2), torch.ones(5, device=kit.DEVICE)
    arguments = (*tensors, 1.0, None, 2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.basic_lite.vocab_kl, (*arguments, *wants), test_utils=checks)


@kit.kernel_test
def test_a_gradient_for_the_target_alone() -> None:
    v, target, table = kit.draw(5, 8), kit.draw(5, 8, seed=1).requires_grad_(), kit.draw(40, 8, seed=2)
    ours = kit.loss_and_gradients(vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE)), target)
    expected = kit.loss_and_gradients(
        eager_vocab_kl.vocab_kl(v, target, table, torch.ones(5, device=kit.DEVICE)), target
    )
    assert all(kit.relative(a, b) < 1e-5 for a, b in zip(ours, expected, strict=True))


@kit.kernel_test
def test_other_types_are_refused() -> None:
    v, target, table = kit.draw(3, 8), kit.draw(3, 8, seed=1), kit.draw(40, 8, seed=2)
    for arguments in ((v.double(), target, table), (v, target, table.int())):
        with pytest.raises(KernelUnavailable, match=r"vocab_kl can't run: it got"):
            vocab_kl(*arguments, torch.ones(3, device=kit.DEVICE))


@kit.kernel_test
@pytest.mark.parametrize("wrong", ["target", "weights", "table", "excluded", "excluded dtype"])
def test_shapes_that_do_not_fit_are_refused(wrong: str) -> None:
    v, target, table, weights = kit.draw(5, 8), kit.draw(5, 8), kit.draw(40, 8), kit.draw(5)
    excluded = torch.zeros(40, dtype=torch.bool, device=kit.DEVICE)
    if wrong == "target":
        target = target[:4]
    elif wrong == "weights":
        weights = weights[:4]
    elif wrong == "table":
        table = table[:, :7]
    elif wrong == "excluded":
        excluded = excluded[:-1]
    else:
        excluded = excluded.to(torch.int64)
    with pytest.raises(ValueError, match="vocab_kl"):
        vocab_kl(v, target, table, weights, excluded=excluded)


# ---- memory


@kit.kernel_test
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=kit.only_gpu)])
@pytest.mark.parametrize("M", [10, 60] if kit.ON_GPU else [6, 17])
def test_memory_is_its_formula(M: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a GPU a 16-bit table is cast, as it has no matrix product there, so only float32 is measured."""
    D, V, R = 16, 8000, 4
    if kit.ON_GPU:
        M, D, V, R = 10 * M, 256, 32000, 64
    if kit.INTERPRETED:
        monkeypatch.setattr(file, "BLOCK_V", 8192)
    v, target, table = kit.draw(M, D).requires_grad_(), kit.draw(M, D, seed=1), kit.draw(V, D, seed=2).to(dtype)
    weights = torch.ones(M, device=kit.DEVICE)
    loss = vocab_kl(v, target, table, weights, chunk_rows=R)
    slack = 64 * M + (2**14 if kit.ON_GPU else 0)  # an allocator rounds up
    peak = kit.peak_bytes(lambda: vocab_kl(v, target, table, weights, chunk_rows=R))
    transient = 8 * R * V + 4 * R * D if dtype == torch.float32 else 10 * R * V
    assert 8 * R * V < peak <= 4 * M * D + transient + slack
    assert transient <= 10 * R * V
    assert kit.peak_bytes(lambda: loss.backward(retain_graph=True)) <= 4 * M * D + slack


@kit.kernel_test
def test_no_gradient_is_made_where_none_is_wanted() -> None:
    v, target, table = kit.draw(64, 512).requires_grad_(), kit.draw(64, 512, seed=1), kit.draw(9, 512, seed=2)
    weights = torch.ones(64, device=kit.DEVICE)
    with torch.no_grad():
        assert kit.peak_bytes(lambda: vocab_kl(v, target, table, weights, chunk_rows=8)) < 4 * v.numel()


def test_rows_in_flight() -> None:
    small = torch.device("cpu")
    assert file.rows_in_flight(576, 32000, small) == 576
    assert file.rows_in_flight(8 * 576, 32000, small) == 576
    assert file.rows_in_flight(576, 152_064, small) == 288
    assert file.rows_in_flight(1, 32000, small) == file.rows_in_flight(0, 32000, small) == 1
    for M in (1, 100, 576, 577, 4608):
        for V in (33, 32000, 78_000, 152_064, 262_144):
            R = file.rows_in_flight(M, V, small)
            assert 1 <= R <= M and R <= 576 and 10 * R * V <= file.SCRATCH_BYTES


def test_a_large_card_takes_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    card = torch.device("cuda")
    assert file.rows_in_flight(576, 32000, card) == 576
    assert file.rows_in_flight(8 * 576, 32000, card) == 2304
    assert 10 * file.rows_in_flight(8 * 576, 152_064, card) * 152_064 <= 10**9


# ---- what only a GPU shows


@kit.kernel_test
@kit.only_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_race(dtype: torch.dtype) -> None:
    v, target = kit.draw(300, 256).requires_grad_(), kit.draw(300, 256, seed=1).requires_grad_()
    table, weights = kit.draw(32000, 256, seed=2, scale=0.1).to(dtype), kit.draw(300, seed=3).abs()
    first = kit.loss_and_gradients(vocab_kl(v, target, table, weights, chunk_rows=128), v, target)
    for _ in range(30):
        again = kit.loss_and_gradients(vocab_kl(v, target, table, weights, chunk_rows=128), v, target)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.soak
def test_through_the_interpreter() -> None:
    kit.run_interpreted(__file__)
