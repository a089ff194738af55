"""The one object that training talks to: open the taps around a forward, then ask for the losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.model.parts import Parts
from basic_lite.recipe.rules import computes_das, computes_sds
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.attention import WatchedAttention, check_attention
from basic_lite.supervision.draw import draw_tokens
from basic_lite.supervision.layout import Layout, find_layout
from basic_lite.supervision.losses import (
    SupervisionLosses,
    directional_alignment,
    semantic_distribution,
    zero_with_graph,
)
from basic_lite.supervision.metrics import embedding_metrics, nearest_special_share
from basic_lite.supervision.patch_weights import attention_masses, patch_weights
from basic_lite.supervision.taps import Capture, TapPlan, open_taps
from basic_lite.supervision.target import TargetPlan, layer_weights, supervised_layers
from basic_lite.supervision.vocabulary import Vocabulary
from basic_lite_kernels.operations import Choice, KernelUnavailable, Operations, choose


def choose_kernels(kernels: str, device: torch.device, say: Callable[[str], None]) -> Choice:
    """``choose`` for the recipe's key, with an error for the user.

    Raises:
        UserError: kernels that were asked for by name aren't there.
    """
    try:
        return choose(kernels, device, say)  # type: ignore[arg-type]
    except KernelUnavailable as error:
        raise UserError(kernels_refused(error)) from error


def kernels_refused(error: KernelUnavailable) -> str:
    """The message for a user whose kernels, asked for by name, can't run."""
    return f"kernels: {error}; set kernels to auto or reference"


class Supervision:
    """DAS and SDS for one model, as the recipe's ``supervision`` section has them.

    One micro-batch::

        with supervision.capture(supervision.layout(batch)) as captured:
            output = model(**batch)
        losses = supervision.losses(captured)
        (output.loss + λ1 * losses.das + λ2 * losses.sds).backward()
    """

    def __init__(
        self,
        parts: Parts,
        settings: SupervisionSection,
        *,
        vocabulary_ids: Tensor,
        operations: Operations,
        special_ids: Iterable[int] = (),
        embedding_scale: float | None = None,
        seed: int = 0,
    ) -> None:
        """Check that the model has what the settings ask for; nothing is tapped yet.

        Args:
            vocabulary_ids: ids the tokenizer has; the image token is left out here if it is among them.
            operations: who computes the losses and the attention mass.
            special_ids: ids of special and padding tokens, for ``nearest_special_share``.
            embedding_scale: factor the embedding module puts on its rows; None: measured. A rehearsal gives one,
                since its tensors hold no values to measure.
            seed: of the tokens drawn for SDS.

        Raises:
            UserError: K out of range, a vocabulary table that can't be used, or attention that can't be read.
        """
        self.parts = parts
        self.settings, self.seed = settings, seed
        self.computes_das = settings.enabled and computes_das(settings)
        self.computes_sds = settings.enabled and computes_sds(settings)
        self.reads_attention = isinstance(settings.token_weights, str)
        self._vocabulary_ids = vocabulary_ids
        self._embedding_scale = embedding_scale
        self.special_ids = torch.tensor(sorted(set(special_ids)), dtype=torch.int64).to(self.device)
        self.operations = operations
        self._direction = None if not self.computes_das or settings.direction == "off" else settings.direction
        layers = supervised_layers(settings.layers, len(parts.layers))
        if self.active:
            _ = self.vocabulary
        self.use(TargetPlan(tuple(layer_weights(settings.layer_weights, layers))))

    def use(self, plan: TargetPlan) -> None:
        """Let ``plan`` say from now on which layers make v̂; at first it is what the settings say.

        Raises:
            UserError: the attention of its layers can't be read.
            ValueError: it is for an LLM with more layers or dimensions.
        """
        layers, settings, width = len(plan.layer_weights), self.settings, self.parts.embeddings.weight.shape[1]
        if layers > len(self.parts.layers):
            raise ValueError(f"a target of {layers} layers for an LLM that has {len(self.parts.layers)}")
        if odd := [one for layer in plan.massive or () for one in layer if not 0 <= one < width]:
            raise ValueError(f"a target without dimension {odd[0]} for an LLM that has {width}")
        if self.active and self.reads_attention:
            check_attention(self.parts.language_model, layers)
        self.target_plan = plan
        self.layers = layers  # K
        self.plan = TapPlan(
            parts=self.parts,
            target=plan,
            massive=plan.masks(width, self.device),
            detach=settings.detach,
            target_norm=settings.target_norm,
            drop_sinks=settings.sinks == "drop",
            attention=WatchedAttention(self.parts.language_model, self.parts.layers[:layers])
            if self.reads_attention
            else None,
            direction=self._direction,
            guard=settings.guard,
        )

    def use_saved(self, given: Mapping[str, Any], where: str) -> None:
        """``use`` of what a run has saved.

        Args:
            given: a plan as JSON has it.
            where: the folder that it is from.

        Raises:
            UserError: it doesn't fit this model, or as ``use``.
        """
        try:
            self.use(TargetPlan.of(given))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{where} has a target of BASIC that doesn't fit its model ({error}): its files were changed; restore "
                "them, or take another checkpoint"
            ) from error

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parts.device

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """E. Checked at once where there is a loss to compute, else only when the refinement curve asks."""
        return Vocabulary(self.parts, self.settings.vocabulary, self._vocabulary_ids, self._embedding_scale)

    @property
    def active(self) -> bool:
        """Whether there is any loss to compute. If not, nothing is tapped or added."""
        return self.computes_das or self.computes_sds

    @property
    def needs_mean_mass(self) -> bool:
        """Whether a step of several micro-batches needs a pass for its attention mass first (``uniform``)."""
        return self.active and self.settings.token_weights == "uniform"

    def lambdas(self, step: int, total_steps: int) -> tuple[float, float]:
        """(λ1, λ2) of a 0-based optimizer step: warm-up from 0, ``every_n_steps``. (0, 0): skip the taps."""
        settings = self.settings
        if not self.active or step % settings.every_n_steps:
            return 0.0, 0.0
        warmup = math.ceil(settings.warmup_ratio * total_steps)
        share = min(1.0, step / warmup) if warmup else 1.0
        das, sds = self.full_lambdas
        return share * das, share * sds

    @property
    def full_lambdas(self) -> tuple[float, float]:
        """(λ1, λ2) after the warm-up; 0 for a loss that isn't computed."""
        settings = self.settings
        return (settings.lambda_das if self.computes_das else 0.0, settings.lambda_sds if self.computes_sds else 0.0)

    def layout(self, batch: Mapping[str, Tensor], step: int = 0) -> Layout:
        """Where the visual and text tokens of a batch are, on the model's device.

        Args:
            batch: ``input_ids``, ``attention_mask``, ``labels``, [B, T]. Best the host's, before it is copied to a
                GPU: then nothing waits for the GPU.
            step: number of the optimizer step, for the tokens that SDS draws.
        """
        layout = find_layout(batch, self.parts.image_token_id, self.settings.text_queries)
        if self.settings.sds_tokens is not None and self.computes_sds:
            layout = draw_tokens(layout, batch["input_ids"].cpu(), self.settings.sds_tokens, seed=self.seed, step=step)
        return layout.to(self.device)

    def capture(self, layout: Layout, *, attention_only: bool = False) -> AbstractContextManager[Capture]:
        """A context around one forward of the batch of ``layout``; what it yields goes to ``losses`` or ``masses``.

        Args:
            attention_only: tap attention only, for ``masses`` of a pass before the step.
        """
        if not self.active:
            return nullcontext(Capture(layout))
        return open_taps(self.plan, self.operations, layout, embeddings=not attention_only)

    def masses(self, captured: Capture) -> Tensor:
        """Σ_i a_i as attention gives it, per sample with an image, [S] float32 (S may be 0).

        Raises:
            RuntimeError: no forward ran inside the capture.
        """
        if captured.layout.samples_with_image == 0:
            return torch.zeros(0, device=captured.layout.positions.device)
        _check_filled(captured, captured.mass)
        return attention_masses(captured)

    def losses(
        self,
        captured: Capture,
        samples_with_image: int | None = None,
        mean_mass: float | Tensor | None = None,
        *,
        detailed: bool = False,
    ) -> SupervisionLosses:
        """L_das and L_sds, before λ.

        Args:
            samples_with_image: their count in the whole accumulated step, so that micro-batches add up; None: in this
                batch.
            mean_mass: the mean of ``masses`` over the whole accumulated step, for ``token_weights: uniform``;
                None: this batch's.
            detailed: also ``nearest_special_share``, a search through the vocabulary for a few patches.

        Returns:
            Exact zeros with a graph for a batch without images and for a loss whose λ is 0.

        Raises:
            RuntimeError: no forward ran inside the capture.
        """
        projector, layout = self.parts.projector, captured.layout
        samples = layout.samples_with_image
        if not self.active or samples == 0:
            zero = zero_with_graph(projector)
            return SupervisionLosses(das=zero, sds=zero, samples=samples)
        v, target = captured.v, captured.target
        _check_filled(captured, v)
        assert v is not None and target is not None
        with torch.no_grad():
            weights = patch_weights(captured, self.settings.token_weights, mean_mass)
        divisor = samples if samples_with_image is None else samples_with_image
        if self.computes_das:
            das = directional_alignment(captured, weights) / divisor
        else:
            das = zero_with_graph(projector)
        if self.computes_sds:
            temperature = self.settings.temperature
            sds = semantic_distribution(captured, weights, self.operations, self.vocabulary, temperature) / divisor
        else:
            sds = zero_with_graph(projector)
        metrics = embedding_metrics(v, target, weights, layout, self.vocabulary)
        if detailed:
            metrics["nearest_special_share"] = nearest_special_share(v, self.vocabulary, self.special_ids)
        return SupervisionLosses(das=das, sds=sds, samples=samples, metrics=metrics, guard=captured.guard)


def _check_filled(captured: Capture, value: Tensor | None) -> None:
    if not captured.closed or value is None:
        raise RuntimeError("the capture is empty: run the model's forward inside `with supervision.capture(…)` first")
