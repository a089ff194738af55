"""The visual tokens drawn for SDS: unbiased, better than plain draws, and the same however a step is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.supervision.draw import draw_tokens
from basic_lite.supervision.layout import Layout, find_layout
from basic_lite.training.processes import ALONE
from basic_lite.training.step import StepCounts, TrainStep
from basic_lite_kernels.eager_vocab_kl import vocab_kl
from basic_lite_kernels.operations import EAGER
from bench.sds_draw import relative_error, smooth_terms
from tests.support import supervision as kit

torch.set_num_threads(1)


def drawn(*patches: int, count: int, step: int = 0, seed: int = 0) -> Layout:
    ids = torch.zeros(len(patches), max(patches) + 1, dtype=torch.int64)
    for row, tokens in enumerate(patches):
        ids[row, :tokens], ids[row, -1] = kit.IMAGE, row
    return draw_tokens(find_layout({"input_ids": ids}, kit.IMAGE, "all"), ids, count, seed=seed, step=step)


def test_one_token_of_each_block_stands_for_it() -> None:
    layout = drawn(10, 0, 3, 8, count=4)
    assert layout.sds_rows is not None and layout.sds_sizes is not None
    sizes = layout.sds_sizes.split([4, 3, 4])
    assert [x.tolist() for x in sizes] == [[2, 3, 2, 3], [1, 1, 1], [2, 2, 2, 2]]
    ends = layout.sds_sizes.cumsum(0)
    assert ((ends - layout.sds_sizes <= layout.sds_rows) & (layout.sds_rows < ends)).all()
    assert drawn(10, 8, count=10).sds_rows is None, "all of them: nothing is drawn"


@pytest.mark.long
def test_every_token_of_a_block_is_drawn_alike() -> None:
    draws = [drawn(10, count=4, step=step).sds_rows for step in range(3000)]
    shares = torch.bincount(torch.cat([rows for rows in draws if rows is not None]), minlength=10) / len(draws)
    expected = torch.tensor([1 / 2] * 2 + [1 / 3] * 3 + [1 / 2] * 2 + [1 / 3] * 3)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)  # the standard error is 0.009


def test_the_draw_follows_from_seed_step_and_sample() -> None:
    def rows(**changes: int) -> list[int]:
        found = drawn(64, 64, count=8, **changes).sds_rows
        assert found is not None
        return list(found.tolist())

    assert rows() == rows()
    assert rows(step=1) != rows() != rows(seed=1)
    first, second = rows()[:8], [row - 64 for row in rows()[8:]]
    assert first != second, "two samples draw for themselves"


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_draw_is_the_samples_whatever_the_batch(side: str) -> None:
    batch = kit.tiny_batch(padding_side=side)
    supervision = kit.build(kit.tiny_llava(), sds_tokens=2)
    whole = supervision.layout(batch, 5)
    assert whole.sds_rows is not None
    alone = []
    for row, first in ((0, 0), (1, kit.PATCHES), (3, 3 * kit.PATCHES)):
        kept = batch["attention_mask"][row].bool()  # without the padding of the longest
        part = {name: x[row : row + 1, kept] for name, x in batch.items() if name != "pixel_values"}
        rows = supervision.layout(part, 5).sds_rows
        assert rows is not None
        alone += [first + i for i in rows.tolist()]
    assert whole.sds_rows.tolist() == alone


def test_a_step_draws_by_its_number() -> None:
    model, batch = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration), kit.tiny_batch("image")
    supervision = kit.build(model, sds_tokens=1)
    step = TrainStep(supervision.parts, supervision, device=torch.device("cpu"))
    counts, found, expected = StepCounts.of([batch], kit.IMAGE), [], []
    for number in range(4):
        found.append(step.gradients([batch], counts, (0.0, 1.0), number=number).values(ALONE)["sds"])
        with supervision.capture(supervision.layout(batch, number)) as captured:
            model(**kit.inputs(batch), use_cache=False)
        expected.append(supervision.losses(captured).sds.item())
    assert found == pytest.approx(expected, rel=1e-5) and len(set(expected)) > 1


def sds_and_gradient(model: Any, batch: dict[str, Tensor], sds_tokens: int | None, steps: int) -> Tensor:
    """[steps, 1 + P] float64: L_sds, and its gradient for the projector's P weights, of each step's draw."""
    supervision = kit.build(model, sds_tokens=sds_tokens)
    captured, _ = kit.run(supervision, batch)
    found = []
    for step in range(steps):
        sds = supervision.losses(replace(captured, layout=supervision.layout(batch, step))).sds
        gradient = torch.cat([g.flatten() for g in kit.projector_grad(model, sds)])
        found.append(torch.cat([sds.detach().reshape(1), gradient]))
    return torch.stack(found).double()


@pytest.mark.long
def test_the_loss_and_its_gradient_are_unbiased() -> None:
    """The mean of many draws against the value over all tokens, by its standard error."""
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    full, values = sds_and_gradient(model, batch, None, 1)[0], sds_and_gradient(model, batch, 2, 400)
    error, spread = values.mean(dim=0) - full, values.std(dim=0) / len(values) ** 0.5
    assert float(spread[0]) > 0, "draws differ"
    assert abs(float(error[0])) < 4 * float(spread[0])
    # Of thousands of entries a few are 3 standard errors off; the mean square is 1 where nothing is biased.
    assert float((error / spread.clamp_min(1e-12)).square().mean()) < 2
    assert float(error.norm()) < 0.1 * float(full.norm())


@pytest.mark.parametrize("detach", [True, False])
def test_sds_is_that_of_the_drawn_rows(detach: bool) -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    seen: list[int] = []

    def counted(v: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(len(v))
        return vocab_kl(v, *args, **options)

    whole = kit.run(kit.build(model, detach=detach), batch)[1]
    supervision = kit.build(model, replace(EAGER, vocab_kl=counted), sds_tokens=3, detach=detach)
    losses = kit.run(supervision, batch)[1]
    assert seen == [9], "three of each sample with an image"
    assert torch.equal(losses.das, whole.das) and not torch.equal(losses.sds, whole.sds)
    every = kit.run(kit.build(model, sds_tokens=8, detach=detach), batch)[1]
    assert torch.equal(every.sds, whole.sds)


def test_blocks_beat_plain_draws() -> None:
    """On terms that change slowly from one patch to the next, as a picture's do."""
    terms = smooth_terms(seed=0)
    blocks, plain = (relative_error(terms, 144, draws=400, blocks=blocks) for blocks in (True, False))
    assert blocks < 0.7 * plain
    assert relative_error(terms, len(terms), draws=3, blocks=True) < 1e-6
