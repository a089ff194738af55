"""``attention_mass`` by Triton against float64, and against eager code of the same types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import kernels as kit

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there are no kernels to test", allow_module_level=True)

from basic_lite_kernels import attention_mass as file
from basic_lite_kernels import naive
from basic_lite_kernels.attention_mass import Tiles
from basic_lite_kernels.signatures import KernelUnavailable, MassTokens

torch.set_num_threads(1)

# Beyond eager code's error: the order of float32 sums. Eager scores in 16 bits are far worse than ours.
TOLERANCE = 2e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short sequence is several tiles, ragged last ones; a GPU keeps its own."""
    if kit.INTERPRETED:
        monkeypatch.setattr(file, "choose_tiles", lambda d, dtype: (Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1)))
        monkeypatch.setattr(file, "LIST_BLOCK", 32)


def check_dtype(dtype: torch.dtype) -> None:
    if kit.INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter's tl.dot gives garbage in bfloat16 (triton 3.7.1, 3.9); a GPU runs this")


def masks(B: int, T: int, seed: int = 0) -> dict[str, Tensor]:
    """Samples in turn: left padding, right padding and two images, text before the image, text only."""
    generator = torch.Generator().manual_seed(seed)
    valid, visual = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    for b in range(B):
        cuts = sorted(int(x) for x in torch.randint(0, T + 1, (5,), generator=generator))
        if b % 4 == 0:
            valid[b, : cuts[0]] = False
        elif b % 4 == 1:
            valid[b, cuts[4] :] = False
            visual[b, cuts[2] : cuts[3]] = True
        if b % 4 != 3:
            visual[b, cuts[0] : cuts[1]] = True
    text = valid & ~visual
    if B > 2:
        text[2] &= torch.rand(T, generator=generator) < 0.5  # text_queries: response
    return {name: x.to(kit.DEVICE) for name, x in (("text_queries", text), ("visual", visual), ("valid", valid))}


def inputs(B: int, heads: tuple[int, int], T: int, d: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Query and key as a model hands them over: [B, T, H, d] transposed."""
    return [kit.draw(B, T, h, d, seed=h + 7 * i, scale=scale).to(dtype).transpose(1, 2) for i, h in enumerate(heads)]


def attention_mass(
    query: Tensor, key: Tensor, *, text_queries: Tensor, visual: Tensor, valid: Tensor, **options: Any
) -> Tensor:
    """The kernel's, from masks, as naive code takes them."""
    return file.attention_mass(query, key, tokens=MassTokens.of(text_queries, visual, valid), **options)


def compare(query: Tensor, key: Tensor, **arguments: Any) -> Tensor:
    truth = naive.attention_mass(query.double(), key.double(), **arguments)
    eager = naive.attention_mass(query, key, **arguments)
    with kit.nan_filled_buffers():
        mass = attention_mass(query, key, **arguments)
    assert mass.dtype == torch.float32 and mass.shape == truth.shape and not mass.requires_grad
    kit.assert_as_good_as(mass, eager, truth, TOLERANCE)
    assert not mass[~arguments["visual"]].any()
    return mass


@kit.kernel_test
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=kit.slow_interpreted), torch.bfloat16]
)
@pytest.mark.parametrize(
    "d", [16, *(pytest.param(d, marks=kit.slow_interpreted) for d in (64, 256)), 80, 128, 320]
)  # plain: each other power of two, and both that are none
def test_head_sizes(d: int, dtype: torch.dtype) -> None:
    check_dtype(dtype)
    arguments = masks(3, 300 if kit.ON_GPU else 40)
    query, key = inputs(3, (4, 2), arguments["valid"].shape[1], d, dtype)
    compare(query, key, scaling=d**-0.5, **arguments)


def groups_windows_and_caps() -> list[Any]:
    """All of them; a plain run through the interpreter has each value of each, not each pair."""
    groups = [(4, 4), (4, 2), (3, 1)]
    bounds = [(None, None), (7, None), (1, None), (None, 2.0), (33, 0.5), (1000, 30.0)]
    return [
        pytest.param(heads, *bound, marks=() if (i + j) % 3 == 0 else kit.slow_interpreted)
        for i, bound in enumerate(bounds)
        for j, heads in enumerate(groups)
    ]


@kit.kernel_test
@pytest.mark.parametrize("heads, window, cap", groups_windows_and_caps())
def test_groups_windows_and_caps(heads: tuple[int, int], window: int | None, cap: float | None) -> None:
    arguments = masks(4, 36, seed=1)
    query, key = inputs(4, heads, 36, 24, torch.float32, scale=2.0)
    compare(query, key, scaling=0.4, sliding_window=window, softcap=cap, **arguments)


@kit.kernel_test
def test_every_window_has_its_first_key() -> None:
    """Windows that begin one key before a tile of keys does, at it, and one behind."""
    visual = torch.arange(36, device=kit.DEVICE)[None] < 20
    arguments = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
    query, key = inputs(1, (1, 1), 36, 8, torch.float32)
    for window in range(3, 8):  # the first query is at 20, and tiles have 16 keys
        compare(query, key, scaling=0.3, sliding_window=window, **arguments)


@kit.kernel_test
@given(
    B=st.integers(1, 4),
    T=st.integers(1, 70),
    group=st.integers(1, 3),
    heads_kv=st.integers(1, 2),
    d=st.integers(1, 70),
    window=st.none() | st.integers(1, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=100 if kit.ON_GPU else 12)
def test_any_shape(B: int, T: int, group: int, heads_kv: int, d: int, window: int | None, seed: int) -> None:
    arguments = masks(B, T, seed)
    query, key = inputs(B, (group * heads_kv, heads_kv), T, d, torch.float32)
    compare(query, key, scaling=0.3, sliding_window=window, **arguments)


@kit.kernel_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_extreme_scores(scale: float, dtype: torch.dtype) -> None:
    """Scores of standard deviation 1e-6 and 50: flat attention, and one key that takes all."""
    check_dtype(dtype)
    arguments = masks(2, 40, seed=2)
    query, key = inputs(2, (2, 2), 40, 64, dtype, scale=scale)
    compare(query, key, scaling=64**-0.5, **arguments)


@kit.kernel_test
def test_padding_holds_anything() -> None:
    """What stands at padded positions, infinities and NaN too, is never seen."""
    arguments = masks(2, 40, seed=3)
    arguments["text_queries"] |= ~arguments["valid"]  # and padding is no query, whoever says so
    query, key = inputs(2, (2, 1), 40, 16, torch.float32)
    plain = attention_mass(query, key, scaling=0.3, **arguments)
    for x in (query, key):
        x.masked_fill_(~arguments["valid"][:, None, :, None], float("nan"))
    assert plain.any() and torch.equal(attention_mass(query, key, scaling=0.3, **arguments), plain)


@kit.kernel_test
def test_the_mass_is_the_gradient_of_values() -> None:
    """Another oracle: a_i is dV of attention where dO is the indicator of the text queries."""
    arguments = masks(3, 50, seed=4)
    query, key = inputs(3, (2, 2), 50, 32, torch.float32)
    value = torch.zeros(3, 2, 50, 1, device=kit.DEVICE, dtype=torch.float64, requires_grad=True)
    seen = arguments["valid"][:, None, None, :] & torch.ones(50, 50, dtype=torch.bool, device=kit.DEVICE).tril()
    seen = seen | torch.eye(50, dtype=torch.bool, device=kit.DEVICE)  # rows of padding must not be empty
    out = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value, attn_mask=seen, scale=0.25
    )
    indicator = (arguments["text_queries"] & arguments["valid"]).double()[:, None, :, None].expand_as(out)
    (gradient,) = torch.autograd.grad(out, value, indicator)
    mass = attention_mass(query, key, scaling=0.25, **arguments)
    assert kit.relative(mass, gradient.mean(1).squeeze(-1) * (arguments["visual"] & arguments["valid"])) < TOLERANCE


@kit.kernel_test
def test_strides_are_read_in_place() -> None:
    arguments = masks(2, 30)
    packed = kit.draw(2, 30, 3, 4, 16).half()  # [B, T, (q, k, v), H, d]
    query, key = packed[:, :, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)
    plain = compare(query, key, scaling=0.25, **arguments)
    flipped = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key)]  # d is not contiguous: copied
    assert torch.equal(attention_mass(*flipped, scaling=0.25, **arguments), plain)
    wide = {name: x.repeat_interleave(2, 1)[:, ::2] for name, x in arguments.items()}
    assert torch.equal(attention_mass(query, key, scaling=0.25, **wide), plain)


@kit.kernel_test
def test_nothing_to_count() -> None:
    arguments = masks(2, 30)
    query, key = inputs(2, (2, 1), 30, 16, torch.float32)
    with kit.nan_filled_buffers():
        for name in ("visual", "text_queries", "valid"):
            nothing = arguments | {name: torch.zeros_like(arguments[name])}  # without visual: a text-only batch
            assert not attention_mass(query, key, scaling=0.25, **nothing).any()
        empty = {name: x[:0] for name, x in arguments.items()}
        assert attention_mass(query[:0], key[:0], scaling=0.25, **empty).shape == (0, 30)


@kit.kernel_test
@pytest.mark.parametrize("heads_each", [6, 4, 1])
def test_heads_are_split_in_order(heads_each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_heads_each", lambda *_: heads_each)
    arguments = masks(2, 30)
    query, key = inputs(2, (6, 3), 30, 16, torch.float32)
    mass = compare(query, key, scaling=0.25, **arguments)
    assert torch.equal(attention_mass(query, key, scaling=0.25, **arguments), mass)


def test_programs_fill_a_card_and_partial_sums_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        multi_processor_count = 82

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(file, "_processors", file._processors.__wrapped__)  # nothing of another test's card
    cuda = torch.device("cuda")
    for B, H, T in ((1, 32, 2048), (8, 32, 2048), (1, 32, 640), (64, 32, 4096), (3, 28, 1111), (1, 1, 1)):
        tiles = -(-T // 64)
        splits = -(-H // file._heads_each(B, H, tiles, cuda))
        assert 1 <= splits <= H
        assert splits == H or 2 * B * tiles * splits >= 82
        assert splits == 1 or 4 * splits * B * T <= 1024 * 82


@kit.kernel_test
def test_autocast_and_a_compiled_caller_change_nothing() -> None:
    arguments = masks(2, 30)
    query, key = inputs(2, (2, 1), 30, 16, torch.float32)
    plain = attention_mass(query, key, scaling=0.25, **arguments)
    with torch.autocast(kit.DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(attention_mass(query, key, scaling=0.25, **arguments), plain)

    def caller(q: Tensor) -> Tensor:
        return attention_mass(q * 1.0, key, scaling=0.25, **arguments) + 1

    compiled = torch.compile(caller, backend="inductor" if kit.ON_GPU else "eager")  # tracing is what could break
    assert torch.equal(compiled(query), plain + 1)


@kit.kernel_test
def test_bad_arguments_are_named() -> None:
    arguments = masks(2, 30)
    query, key = inputs(2, (2, 1), 30, 16, torch.float32)
    with pytest.raises(KernelUnavailable, match=r"attention_mass .*float64"):
        attention_mass(query.double(), key.double(), scaling=1.0, **arguments)
    with pytest.raises(KernelUnavailable, match=r"queries are torch\.float32"):
        attention_mass(query, key.half(), scaling=1.0, **arguments)
    with pytest.raises(ValueError, match="H_kv"):
        attention_mass(query, key[:, :, :-1], scaling=1.0, **arguments)
    with pytest.raises(ValueError, match="bool"):
        attention_mass(query, key, scaling=1.0, **arguments | {"visual": arguments["visual"].int()})


@kit.kernel_test
def test_memory_is_its_formula() -> None:
    B, H, T = 4, 4, 64
    arguments = masks(B, T)
    query, key = inputs(B, (H, 2), T, 16, torch.float16)
    tokens = MassTokens.of(**arguments)
    R, C = tokens.rows.shape[1], tokens.columns.shape[1]
    file.attention_mass(query, key, scaling=0.25, tokens=tokens)
    peak = kit.peak_bytes(lambda: file.attention_mass(query, key, scaling=0.25, tokens=tokens))
    # Through the interpreter the heads aren't split.
    processors = torch.cuda.get_device_properties(kit.DEVICE).multi_processor_count if kit.ON_GPU else 0
    slack = 8 * 512 if kit.ON_GPU else 64  # of the allocator, a tensor
    assert peak <= 4 * B * T + 4 * B * R * H + 1024 * processors + 4 * B * C + slack


@kit.kernel_test
def test_layers_add_up_in_place() -> None:
    """What earlier layers have left stays, at other tokens too; here also in samples without an image."""
    arguments = masks(4, 40, seed=5)
    query, key = inputs(4, (4, 2), 40, 16, torch.float32)
    before = kit.draw(4, 40, seed=9)
    mass = attention_mass(query, key, scaling=0.25, **arguments)
    running = before.clone()
    assert attention_mass(query, key, scaling=0.25, out=running, **arguments) is running
    assert torch.equal(running, before + mass) and not torch.equal(running, before)
    # The kernel goes by addresses: what lies between, or behind, belongs to somebody else.
    for odd in (before.double(), before[:, :-1].contiguous(), kit.draw(4, 80)[:, ::2]):
        with pytest.raises(ValueError, match=r"out is .* contiguous float32"):
            attention_mass(query, key, scaling=0.25, out=odd, **arguments)


# ---- what only a GPU shows


@kit.kernel_test
@kit.only_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [64, 128, 256])
def test_no_race(d: int, dtype: torch.dtype) -> None:
    arguments = masks(4, 1500)
    query, key = inputs(4, (8, 2), 1500, d, dtype)
    first = compare(query, key, scaling=d**-0.5, **arguments)
    for _ in range(20):
        assert torch.equal(attention_mass(query, key, scaling=d**-0.5, **arguments), first)
