"""Where the tokens of a batch are: found on the host, so that nothing later waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.supervision.layout import find_layout
from tests.support import supervision as kit
from tests.support.waits import Waits

torch.set_num_threads(1)


def test_roles_of_each_token() -> None:
    """The batch has one image, two images, a text-only row and a sample without text after its image."""
    batch = kit.tiny_batch(padding_side="left")
    layout = find_layout(batch, kit.IMAGE, "all")
    assert layout.patches.tolist() == [kit.PATCHES, 2 * kit.PATCHES, 0, kit.PATCHES]
    assert layout.rows_with_image.tolist() == [0, 1, 3] and layout.samples_with_image == 3
    assert layout.text.sum(dim=1).tolist() == [5, 7, 0, 0]
    for mask, listed in ((layout.text, layout.text_rows), (layout.visual, layout.visual_columns)):
        assert listed.shape == (4, int(mask.sum(dim=1).max())) and listed.dtype == torch.int32
        for row, places in zip(mask, listed.tolist(), strict=True):
            assert [at for at in places if at >= 0] == row.nonzero().flatten().tolist()
            assert sorted(places, key=lambda at: at < 0) == places, "what pads a list is behind its last"
    assert layout.sample.tolist() == [0] * kit.PATCHES + [1] * 2 * kit.PATCHES + [3] * kit.PATCHES
    assert (batch["input_ids"].flatten()[layout.positions] == kit.IMAGE).all()
    with pytest.raises(ValueError, match="text_queries: prompt needs labels"):
        find_layout(kit.inputs(batch), kit.IMAGE, "prompt")


def test_it_moves_as_a_whole() -> None:
    layout = find_layout(kit.tiny_batch(), kit.IMAGE, "all")
    moved = layout.to(torch.device("meta"))
    tensors = {name: value for name, value in vars(moved).items() if isinstance(value, Tensor)}
    assert len(tensors) == 11 and all(value.is_meta for value in tensors.values())
    assert moved.samples_with_image == 3


@pytest.mark.parametrize(
    "settings",
    [{}, {"token_weights": "uniform"}, {"token_weights": 0.4}, {"guard": 0.5, "sds_tokens": 2}],
    ids=["attention", "uniform", "fixed", "guarded"],
)
def test_a_forward_its_losses_and_their_backward_wait_for_nothing(settings: dict[str, Any]) -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch(padding_side="left")
    supervision = kit.build(model, **settings)
    supervision.vocabulary.mean_norm()  # once a run
    layout = supervision.layout(batch)
    with Waits() as plain:
        model(**kit.inputs(batch), use_cache=False).logits.sum().backward()
    with Waits() as tapped:
        with supervision.capture(layout) as captured:
            logits = model(**kit.inputs(batch), use_cache=False).logits
        losses = supervision.losses(captured, detailed=True)
        (logits.sum() + losses.das + losses.sds).backward()
    assert tapped.found == plain.found, "BASIC adds no wait to the model's own"
    with Waits() as seen:
        find_layout(batch, kit.IMAGE, "all")
    assert seen.found["nonzero"] and seen.found["_local_scalar_dense"], "the mode sees waits"
