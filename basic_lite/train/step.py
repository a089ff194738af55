"""One micro-batch's loss, L = L_lm + λ1 L_das + λ2 L_sds: what the trainer runs, and what a rehearsal runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basic_lite.model.parts import Parts
from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.supervision.losses import zero_with_graph


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch's loss and what it is made of. ``basic`` is None where BASIC is off in this step."""

    loss: Tensor
    outputs: Any
    basic: SupervisionLosses | None


def micro_batch_loss(
    model: Callable[..., Any],
    parts: Parts,
    supervision: Supervision | None,
    inputs: Mapping[str, Tensor],
    *,
    lambdas: tuple[float, float],
    num_items_in_batch: Tensor | int | None,
    samples_with_image: int,
    mean_mass: Tensor | None = None,
    detailed: bool = False,
) -> MicroBatch:
    """Forward with the taps open, then the losses.

    Args:
        model: called with ``inputs``; the model itself or what the trainer has wrapped around it.
        supervision: None, or both λ 0: nothing is tapped.
        num_items_in_batch: labelled tokens of the whole optimizer step.
        samples_with_image: of the whole optimizer step.
        mean_mass: the step's mean attention mass, for ``token_weights: uniform``.
        detailed: also the measures that one micro-batch a step is enough for.
    """
    lambda_das, lambda_sds = lambdas
    if lambda_das <= 0 and lambda_sds <= 0:
        supervision = None
    with supervision.capture(inputs) if supervision is not None else nullcontext() as captured:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
    loss, basic = outputs.loss, None
    if supervision is not None and captured is not None:
        basic = supervision.losses(
            captured, samples_with_image=samples_with_image, mean_mass=mean_mass, detailed=detailed
        )
        if lambda_das > 0:
            loss = loss + lambda_das * basic.das
        if lambda_sds > 0:
            loss = loss + lambda_sds * basic.sds
    if not loss.requires_grad:
        # A text-only batch in stage 1 reaches no trainable weight; it still takes part, with gradient zero.
        loss = loss + zero_with_graph(parts.projector)
    return MicroBatch(loss, outputs, basic)


@torch.no_grad()
def attention_pass(model: Callable[..., Any], supervision: Supervision, inputs: Mapping[str, Tensor]) -> Tensor:
    """Σ_i a_i of a micro-batch's samples with an image, [S]: the forward before a step that ``uniform`` needs.

    Args:
        model: in evaluation mode, so without dropout: the mass is the same whatever the micro-batch is.
    """
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    with supervision.capture(inputs, weights_only=True) as captured:
        # Of what the model would return, nothing is wanted: one column of logits, no keys and values of all layers.
        model(**without_labels, logits_to_keep=1, use_cache=False)
    return supervision.masses(captured)
