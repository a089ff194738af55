"""``attention_mass`` in eager PyTorch against the naive one in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite_kernels import eager_attention_mass as file
from basic_lite_kernels import naive
from basic_lite_kernels.signatures import MassTokens
from tests.support import kernels as kit
from tests.support.kernels import draw_on_cpu as draw

torch.set_num_threads(1)


def attention_mass(
    query: Tensor, key: Tensor, *, text_queries: Tensor, visual: Tensor, valid: Tensor, **options: Any
) -> Tensor:
    """Eager code's, from masks, as naive code takes them."""
    return file.attention_mass(query, key, tokens=MassTokens.of(text_queries, visual, valid), **options)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window,cap", [(None, None), (5, None), (None, 2.0)])
@pytest.mark.parametrize("chunk", [1, 150, 2**22])
def test_mass(heads: tuple[int, int], window: int | None, cap: float | None, chunk: int) -> None:
    B, T, d = 4, 14, 6
    query, key = draw(B, heads[0], T, d), draw(B, heads[1], T, d, seed=1)
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, :3] = False  # left padding
    valid[1, 10:] = False  # right padding
    visual = torch.zeros_like(valid)
    visual[0, 4:8] = True
    visual[1, 1:3] = visual[1, 6:8] = True  # two images
    visual[2, 5:8] = True  # fewer than the others
    text = valid & ~visual
    text[0, :4] = text[1, 0] = text[2, :5] = False
    text[3] = True  # text only
    arguments: dict[str, Any] = {"scaling": 0.4, "sliding_window": window, "softcap": cap}
    arguments |= {"text_queries": text, "visual": visual, "valid": valid}
    truth = naive.attention_mass(query.double(), key.double(), **arguments)
    mass = attention_mass(query, key, chunk_elements=chunk, **arguments)
    assert mass.dtype == torch.float32 and mass.shape == (B, T)
    assert kit.relative(mass, truth) < 1e-6
    assert not mass[3].any() and not mass[~visual].any()
    before = draw(B, T, seed=2)
    running = before.clone()
    assert attention_mass(query, key, chunk_elements=chunk, out=running, **arguments) is running
    assert torch.equal(running, before + mass)


def test_what_is_not_seen_stays_unseen_however_low_the_scores() -> None:
    visual = torch.tensor([[True, True, False, False]])
    arguments = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
    mass = attention_mass(torch.full((1, 1, 4, 1), 1e5), torch.full((1, 1, 4, 1), -1e5), scaling=1.0, **arguments)
    assert mass[0, :2].tolist() == pytest.approx([1 / 3 + 1 / 4] * 2)


def test_reads_strided_bf16_in_float32_and_is_deterministic() -> None:
    query = draw(2, 12, 4, 8).bfloat16().transpose(1, 2)  # as a model hands it over: [B, T, H, d] transposed
    key = draw(2, 12, 2, 8, seed=1).bfloat16().transpose(1, 2)
    visual = torch.zeros(2, 12, dtype=torch.bool)
    visual[:, 2:6] = True
    text = ~visual
    text[:, :2] = False
    masks = {"text_queries": text, "visual": visual, "valid": torch.ones_like(text)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mass = attention_mass(query, key, scaling=0.5, **masks)
        again = attention_mass(query, key, scaling=0.5, **masks)
    truth = naive.attention_mass(query.double(), key.double(), scaling=0.5, **masks)
    assert kit.relative(mass, truth) < 1e-6 and torch.equal(mass, again)


def test_never_makes_the_map() -> None:
    B, H, T, d = 2, 4, 60, 8
    query, key = draw(B, H, T, d), draw(B, 2, T, d, seed=1)
    visual = torch.zeros(B, T, dtype=torch.bool)
    visual[:, 2:40] = True
    text = ~visual
    text[:, :2] = False
    with kit.MadeShapes() as made:
        attention_mass(
            query, key, scaling=0.3, text_queries=text, visual=visual, valid=torch.ones_like(text), chunk_elements=1000
        )
    assert not [s for s in made.shapes if s[-2:] == (T, T)]


def test_memory_is_bounded() -> None:
    """Ten times the samples take no more than their own result."""
    chunk = 2000
    peaks = []
    for B in (1, 10):
        T = 40
        query, key = draw(B, 4, T, 8), draw(B, 2, T, 8, seed=1)
        visual = torch.zeros(B, T, dtype=torch.bool)
        visual[:, 2:20] = True
        masks = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
        arguments = {"query": query, "key": key, "scaling": 0.3, "chunk_elements": chunk}
        arguments["tokens"] = MassTokens.of(**masks)
        peaks.append(kit.peak_bytes(partial(file.attention_mass, **arguments), kit.CPU))
        assert peaks[-1] <= 14 * chunk + 40 * B * T
    assert peaks[1] - peaks[0] <= 9 * 40 * T


def test_a_window_of_nothing_is_refused() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    keys = {"text_queries": mask, "visual": mask, "valid": mask}
    with pytest.raises(ValueError, match="sliding_window is 0"):
        attention_mass(draw(1, 2, 4, 8), draw(1, 2, 4, 8), scaling=1.0, sliding_window=0, **keys)
