"""What is chosen by the scores of the refinement curve."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from basic_lite.supervision.calibration import choose_target, measured_weights
from tests.support import supervision as kit


def test_layer_weights_are_the_gains_above_v() -> None:
    assert measured_weights([0.1, -0.2, 0.3]) == pytest.approx([0.25, 0, 0.75])
    assert measured_weights([-0.1, 0.0]) is None


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
