"""E, the table of words, and the metrics that are taken with it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Supervision
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.metrics import embedding_metrics, nearest_special_share
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite_kernels.operations import EAGER
from bench.measure import peak_bytes
from tests.support import supervision as kit

torch.set_num_threads(1)


def test_vocabulary_leaves_out_rows_that_are_no_words() -> None:
    vocabulary = kit.build(kit.tiny_llava()).vocabulary
    assert vocabulary.rows == 33 and vocabulary.excluded is not None
    assert vocabulary.excluded.nonzero().flatten().tolist() == [kit.IMAGE, 11]
    weight = vocabulary._module.weight
    assert isinstance(weight, Tensor) and vocabulary.table.data_ptr() == weight.data_ptr(), "a slice, not a copy"
    words = weight[[i for i in kit.word_ids().tolist() if i != kit.IMAGE]]
    assert torch.allclose(vocabulary.mean_norm(), words.norm(dim=1).mean())
    parts = find_parts(kit.tiny_llava())
    whole = Supervision(
        parts, SupervisionSection(), vocabulary_ids=torch.arange(kit.IMAGE), operations=EAGER
    ).vocabulary
    assert whole.excluded is None and whole.rows == kit.IMAGE


def test_gemma_embeddings_count_as_the_llm_sees_them() -> None:
    model = kit.tiny_llava("gemma")
    vocabulary = kit.build(model).vocabulary
    seen = model.get_input_embeddings()(kit.word_ids())
    assert vocabulary.scale == pytest.approx(kit.WIDTH**0.5, rel=1e-6)
    assert torch.allclose(vocabulary.scale * vocabulary.table[kit.word_ids()], seen)
    assert kit.build(model, vocabulary="lm_head").vocabulary.scale == 1.0
    model.bfloat16()
    assert kit.build(model).vocabulary.scale == pytest.approx(kit.WIDTH**0.5, rel=2**-7)


def test_nearest_word_is_the_cosine_search() -> None:
    vocabulary = kit.build(kit.tiny_llava()).vocabulary
    rows = torch.randn(50, kit.WIDTH, generator=torch.Generator().manual_seed(3))
    words = torch.tensor([i for i in kit.word_ids().tolist() if i != kit.IMAGE])
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], vocabulary.table[words][None], dim=2)
    assert torch.equal(vocabulary.nearest(rows), words[cosine.argmax(1)])
    special = words[:9]
    share = nearest_special_share(rows, vocabulary, special)
    assert share.item() == pytest.approx((torch.isin(words[cosine.argmax(1)], special)).float().mean().item())


def test_the_search_holds_one_block_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a float32 table; else the scores of a block are there while the next ones are made."""
    vocabulary, elements, rows = kit.build(kit.tiny_llava()).vocabulary, 2**15, 2048
    monkeypatch.setattr("basic_lite.supervision.vocabulary.SCRATCH_ELEMENTS", elements)
    states = torch.randn(rows, vocabulary.table.shape[1])
    vocabulary.nearest(states)
    assert peak_bytes(lambda: vocabulary.nearest(states), torch.device("cpu")) <= 4 * elements + 32 * rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_of_words_decide_nothing(dtype: torch.dtype) -> None:
    """Against float64: words of every length, and one of zeros, which is nearest where all others point away."""
    model = kit.tiny_llava()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, 0] = table[:, 0].abs() + 0.01  # all point to one side
        table *= torch.logspace(-8, 8, len(table))[:, None]
        table[5] = 0
    vocabulary = kit.build(model.to(dtype)).vocabulary
    ids = vocabulary.ids
    rows = torch.randn(200, kit.WIDTH, generator=torch.Generator().manual_seed(4))
    words = vocabulary.table[ids].double()
    cosine = torch.nn.functional.cosine_similarity(rows.double()[:, None], words[None], dim=2)  # [R, V]
    first, second = cosine.topk(2).values.unbind(1)
    clear = first - second > 1e-5
    assert clear.float().mean() > 0.9
    assert torch.equal(vocabulary.nearest(rows)[clear], ids[cosine.argmax(1)][clear])
    away = -torch.eye(kit.WIDTH)[:1]
    assert vocabulary.nearest(away).item() == 5


@pytest.mark.parametrize("table,target", [("input_embeddings", "embed_tokens"), ("lm_head", "lm_head")])
def test_lora_on_a_vocabulary_table_is_refused(table: str, target: str) -> None:
    model = kit.tiny_llava()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target]), model)
    with pytest.raises(UserError, match=r"LoRA on a vocabulary table.*lora\.targets"):
        kit.build(model, vocabulary=table)
    other = "lm_head" if table == "input_embeddings" else "input_embeddings"
    kit.build(model, vocabulary=other)
    kit.build(model, vocabulary=table, enabled=False)


def test_pairs_of_samples_with_few_patches() -> None:
    """Samples of 0, 1, 2 and 3 visual tokens, one of the last padded: a mean over those that have pairs."""
    supervision, counts = kit.build(kit.tiny_llava()), (0, 1, 2, 3)
    ids = torch.tensor([[kit.IMAGE] * count + [3] * (4 - count) for count in counts])
    mask = torch.ones_like(ids)
    mask[3, 0] = 0
    layout = find_layout({"input_ids": ids, "attention_mask": mask}, kit.IMAGE, "all")
    v = torch.randn(6, kit.WIDTH, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(v.double(), dim=1)
    means = []
    for rows in unit.split(counts):
        if len(rows) > 1:
            means.append((rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].mean())
    other = torch.randn(6, kit.WIDTH, generator=torch.Generator().manual_seed(1))
    metrics = embedding_metrics(v, other, torch.ones(6), layout, supervision.vocabulary)
    own = [rows.mean() for rows in torch.cosine_similarity(v, other, dim=1).split(counts[1:])]
    assert float(metrics["cos"]) == pytest.approx(float(torch.stack(own).mean()), abs=1e-6)
    long = torch.stack([rows.norm(dim=1).mean() for rows in v.split(counts[1:])]).mean()
    assert float(metrics["norm_to_vocabulary"]) == pytest.approx(float(long / supervision.vocabulary.mean_norm()))
    assert float(metrics["pairwise_cos"]) == pytest.approx(float(torch.stack(means).mean()), abs=1e-6)


@pytest.mark.parametrize("silent", [True, False])
def test_metrics_of_rows_of_zeros_are_numbers(silent: bool) -> None:
    """A projector that gives nothing: where no text stands before the picture, v̂ is nothing either."""
    supervision, batch = kit.build(kit.tiny_llava()), kit.tiny_batch("image")
    layout = find_layout(batch, kit.IMAGE, "all")
    v = torch.zeros(layout.positions.numel(), kit.WIDTH)
    target = torch.zeros_like(v) if silent else torch.ones_like(v)
    metrics = embedding_metrics(v, target, torch.ones(len(v)), layout, supervision.vocabulary)
    assert {name: value.item() for name, value in metrics.items() if name != "sum_a"} == dict.fromkeys(
        ("cos", "pairwise_cos", "norm_to_target", "norm_to_vocabulary"), 0.0
    )


def test_metrics_are_what_they_say() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    supervision = kit.build(model)
    captured, _ = kit.run(supervision, batch)
    metrics = supervision.losses(captured, detailed=True).metrics
    v, target = captured.v, captured.target
    assert v is not None and target is not None
    v = v.detach()
    weights = patch_weights(captured, "attention", None)
    cosine = torch.nn.functional.cosine_similarity
    pairwise, patches = [], [kit.PATCHES, 2 * kit.PATCHES, kit.PATCHES]

    def mean(values: Tensor) -> Tensor:
        return torch.stack([rows.mean() for rows in values.split(patches)]).mean()

    for rows in v.split(patches):
        grid = cosine(rows[:, None], rows[None], dim=2)
        pairwise.append(grid[~torch.eye(len(rows), dtype=torch.bool)].mean())
    expected = {
        "sum_a": weights.sum() / 3,
        "cos": mean(cosine(v, target)),
        "pairwise_cos": torch.stack(pairwise).mean(),
        "norm_to_target": mean(v.norm(dim=1)) / mean(target.norm(dim=1)),
        "norm_to_vocabulary": mean(v.norm(dim=1)) / supervision.vocabulary.mean_norm(),
        "nearest_special_share": torch.isin(supervision.vocabulary.nearest(v), torch.tensor([0, 1, 2])).float().mean(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), abs=1e-6), name
        assert not metrics[name].requires_grad
    assert 0 < metrics["sum_a"].item() <= 1
