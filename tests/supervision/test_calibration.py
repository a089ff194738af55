"""What is chosen by the scores of the refinement curve."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.calibration import choose_target, measured_weights, target_by_gains
from tests.support import supervision as kit
from tests.support.words import word_tokenizer


def test_layer_weights_are_the_gains_above_v() -> None:
    assert measured_weights([0.1, -0.2, 0.3]) == pytest.approx([0.25, 0, 0.75])
    assert measured_weights([-0.1, 0.0]) is None


@pytest.mark.parametrize(
    ("layers", "gains", "weights"),
    [
        ("measured", [0.1, 0.3, 0.3, -0.2], (0.25, 0.75)),  # the lowest of equals
        ("measured", [0.0, 0.0, -0.1, -0.2], (0.2, 0.8)),  # none is better: half of the layers, h²
        (2, [0.1, 0.3, 0.9, 0.0], (0.25, 0.75)),
        (2, [-0.1, 0.0, 0.9, 0.0], (0.2, 0.8)),  # none up to K
    ],
)
def test_the_target_follows_the_scores(layers: Any, gains: list[float], weights: tuple[float, ...]) -> None:
    settings = SupervisionSection(layers=layers, layer_weights="measured")
    assert target_by_gains(settings, gains, None).layer_weights == pytest.approx(weights)


@pytest.mark.parametrize("everywhere", [True, False])
def test_one_long_token_makes_no_dimension_massive(everywhere: bool) -> None:
    """However long it is: each token counts as a row of length 1."""
    model, batch = kit.tiny_llava(), kit.tiny_batch("image")
    visual = batch["input_ids"] == kit.IMAGE
    long = visual if everywhere else visual & (visual.cumsum(dim=1) == 2)
    long[1] &= everywhere

    def lengthen(layer: nn.Module, args: object, hidden: Tensor) -> Tensor:
        return hidden + 1e4 * long.unsqueeze(2) * (torch.arange(kit.WIDTH) == 5)

    model.model.language_model.layers[0].register_forward_hook(lengthen)
    supervision = kit.build(model, target_norm="layer")
    plan = choose_target(supervision, [batch], cast(PreTrainedTokenizerBase, None), by_score=False)
    assert plan.massive is not None and plan.massive[0] == ((5,) if everywhere else ())


def test_layers_are_scored_without_their_massive_dimensions() -> None:
    """After layer 2 each sample's tokens are its own word, but for one dimension that is the same in all."""
    model, words = kit.tiny_llava(), list(range(12, 28))
    ids = torch.tensor([[1, *([kit.IMAGE] * kit.PATCHES), 3, word] for word in words])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(len(words), 3, 8, 8)}

    def write(layer: nn.Module, args: object, hidden: Tensor) -> Tensor:
        own = model.get_input_embeddings()(ids[:, -1:]) + 1e3 * (torch.arange(kit.WIDTH) == 5)
        return torch.where((ids == kit.IMAGE).unsqueeze(2), own, hidden)

    model.model.language_model.layers[1].register_forward_hook(write)
    supervision = kit.build(model, target_norm="layer", layers="measured", layer_weights="measured")
    plan = choose_target(supervision, [batch], word_tokenizer())
    assert plan.massive is not None and plan.massive[:2] == ((), (5,))
    assert len(plan.layer_weights) == 2 and plan.layer_weights[1] > 0.9
