"""Whether BASIC's pull lowers the loss: what the gate tries before BASIC goes on.

A v̂ that is better than v doesn't make the pull towards v̂ good for the language-modelling loss: in the demo's world the
loss came out higher in both stages where the premise alone had opened the gate (docs/EVIDENCE.md). So the pull is
tried. BASIC's own gradient of the projector's weights is taken on some samples; the weights move against it, by a small
share of their norm; the LM loss of other samples is measured before and after; and the weights are put back.

To let an auxiliary loss in only where its gradient agrees with the main loss's is the idea of Du et al. 2018 (arXiv
1812.02224). Here the main loss itself is asked, on samples that the gradient isn't of.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from basic_lite.intervals import ratio_interval
from basic_lite.resampling import Interval
from basic_lite.supervision.taps import evaluating
from basic_lite.training.recovery import random_state, set_random_state, slices
from basic_lite.training.step import Batch, StepCounts, TrainStep

# How far the weights move, as a share of their norm: about as far as a whole step of the demo moves them. There a share
# of .003 gave the same signs; at .03 the loss may rise either way.
MOVED = 0.01


@dataclass(frozen=True)
class Pull:
    """A trial of BASIC's pull on the projector."""

    step: TrainStep  # with BASIC
    pulling: Sequence[Batch]  # on the host: what the gradient is of
    asked: Sequence[Batch]  # other samples, whose loss is measured
    micro_batch: Callable[[], int]  # how many samples a step takes at once now; after a lack of memory they are fewer

    def tried(self) -> Interval:
        """How much the LM loss changes, in nats a token: the mean over the samples that are asked, and its interval.

        The model trains on as before: weights, gradients, generators and modes are what they were. It needs no more
        of the device than a step of one micro-batch. With ``token_weights: uniform`` the mean mass is each
        micro-batch's.
        """
        with torch.autocast(self.step.device.type, enabled=False):  # the step has its own, around the forward alone
            gradient = self._gradient()
            before = self._losses()
            with self._moved(gradient):
                changes = (self._losses() - before).numpy()
        return ratio_interval(changes, np.ones_like(changes))

    @property
    def _weights(self) -> list[Tensor]:
        return [weight for weight in self.step.parts.projector.parameters() if weight.requires_grad]

    def _gradient(self) -> list[Tensor]:
        """BASIC's part of a step's gradient, after the guard: that of the whole loss less that of the LM loss alone.

        It adds up on the host: there a backward on a card needs no more than a step's does.
        """
        step, weights, kept = self.step, self._weights, random_state(self.step.device)
        assert step.supervision is not None
        counts = StepCounts.of(self.pulling, step.parts.image_token_id)
        scale = step.loss_scale(counts)  # how long the gradient is doesn't matter
        total = [torch.zeros_like(weight, device="cpu") for weight in weights]
        step.train_mode()
        try:
            # Batch by batch, so that what the two have in common leaves no rounding of its sum.
            for batch in self._cut(self.pulling):
                for lambdas, sign in ((step.supervision.full_lambdas, 1), ((0.0, 0.0), -1)):
                    set_random_state(kept, step.device)  # the same dropout in both
                    loss = step.loss(batch, counts, lambdas).loss * scale
                    for one, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
                        one.add_(gradient.cpu(), alpha=sign)
        finally:
            set_random_state(kept, step.device)
        return total

    def _losses(self) -> Tensor:
        """The LM loss of each sample, [n] float64."""
        with evaluating(self.step.parts.model):
            return torch.cat([self.step.sample_losses(batch) for batch in self._cut(self.asked)])

    def _cut(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield from slices(batch, self.micro_batch(), self.step.parts.image_token_id)

    @contextmanager
    def _moved(self, gradient: list[Tensor]) -> Iterator[None]:
        """The weights moved against a gradient, for a while; no gradient moves nothing."""
        weights = self._weights
        before = [weight.detach().clone() for weight in weights]
        norm, long = (float(torch.stack([one.norm() for one in each]).norm()) for each in (before, gradient))
        try:
            with torch.no_grad():
                for weight, one in zip(weights, gradient, strict=True):
                    weight.add_(one.to(weight.device), alpha=-MOVED * norm / long if long else 0.0)
            yield
        finally:
            with torch.no_grad():
                for weight, one in zip(weights, before, strict=True):
                    weight.copy_(one)
