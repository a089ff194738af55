"""The two losses, DAS and SDS, of what the taps have captured."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from basic_lite.supervision.guard import Guard
from basic_lite.supervision.taps import Capture
from basic_lite.supervision.vocabulary import Vocabulary
from basic_lite_kernels.operations import Operations


@dataclass(frozen=True)
class SupervisionLosses:
    """L_das and L_sds before λ: sums over this batch's samples / samples with an image of the whole step.

    ``samples`` counts this batch's samples with an image. ``metrics`` are scalars without a graph, means over this
    batch; empty where it has no image. ``guard`` has more of them once the backward is done.
    """

    das: Tensor
    sds: Tensor
    samples: int
    metrics: dict[str, Tensor] = field(default_factory=dict)
    guard: Guard | None = None


def directional_alignment(captured: Capture, weights: Tensor) -> Tensor:
    """DAS: Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖², or its variant ``mse``. ``weights`` are a_i, [M]."""
    assert captured.stream is not None
    return captured.stream.loss(weights)


def semantic_distribution(
    captured: Capture, weights: Tensor, operations: Operations, vocabulary: Vocabulary, temperature: float
) -> Tensor:
    """SDS: Σ_i a_i KL(softmax(v̂ Eᵀ) ‖ softmax(v Eᵀ)), logits over the temperature. ``weights`` are a_i, [M].

    Where tokens were drawn it is computed on those, and is unbiased.
    """
    v, target, layout = captured.v, captured.target, captured.layout
    assert v is not None and target is not None
    if layout.sds_rows is not None and layout.sds_sizes is not None:
        v, target, weights = (x.index_select(0, layout.sds_rows) for x in (v, target, weights))
        weights = weights * layout.sds_sizes
    scale = vocabulary.scale / temperature
    return operations.vocab_kl(v, target, vocabulary.table, weights, scale=scale, excluded=vocabulary.excluded)


def zero_with_graph(module: nn.Module) -> Tensor:
    """A loss of exactly 0, with a graph to every trainable parameter: gradient 0, even of infinite weights."""
    zero = torch.zeros((), device=next(module.parameters()).device)
    for parameter in module.parameters():
        if parameter.requires_grad:
            zero = zero + parameter.flatten()[:0].sum(dtype=torch.float32)
    return zero
