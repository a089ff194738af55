"""BASIC's step the naive way: what one would write in an afternoon on top of transformers. The bench's baseline.

The model runs with eager attention, returns all its attention maps, hidden states and logits, and the losses are made
of those by ``basic_lite_kernels.naive``. It gives the same loss and gradients as ``TrainStep``, so the two take each
other's place in the step bench and in a rehearsal.

What gradient checkpointing does to it (read in transformers 5.23, and measured against the rehearsal):

- **Hidden states cost next to nothing more.** A checkpointed layer's input is kept for its backward anyway, and that is
  what ``output_hidden_states`` hands out.
- **Attention maps are all kept**, [B, H, T, T] of each of the L layers, not of the K that are needed. Checkpointing
  drops what a layer saves for its backward, but a map that was handed out lives as long as the outputs do: until the
  loss is made. That is 2·L·B·H·T² bytes in bf16. The backward then makes each map once more, one layer at a time,
  without handing it out, since transformers collects only while the model's forward runs.

Left out, to the naive way's good: under accelerate's mixed precision every output that is bf16 is turned to float32
when the forward returns, the maps too, which is 4·L·B·H·T² bytes more at that moment.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · D hidden size · V vocabulary · L decoder
layers · K supervised layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.supervision.layout import Layout
from basic_lite.training.breakdown import CAPTURE, DAS, MASS, SDS
from basic_lite.training.step import Batch, Lambdas, MicroBatchLoss, StepCounts, TrainStep
from basic_lite_kernels import naive

Watch = Callable[[str, Callable[..., Tensor]], Callable[..., Tensor]]


class NaiveStep(TrainStep):
    """A ``TrainStep`` whose loss is made the naive way.

    It takes settings, K, w_h and E from the supervision. It doesn't make the measures of the embeddings that ours logs.

    Args:
        arguments: ``TrainStep``'s.
        watch: given a part's name and its function, what to call instead: the same under a clock.
        options: ``TrainStep``'s.
    """

    def __init__(self, *arguments: Any, watch: Watch = lambda name, function: function, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refined_target = watch(CAPTURE, naive.refined_target)
        self.column_sums = watch(MASS, naive.column_sums)
        self.direction_loss = watch(DAS, naive.direction_loss)
        self.vocab_kl = watch(SDS, naive.vocab_kl)

    def loss(self, batch: Batch, counts: StepCounts, lambdas: Lambdas, **options: Any) -> MicroBatchLoss:
        """L_lm + λ1 L_das + λ2 L_sds. ``options`` (``detailed``) are ignored.

        Raises:
            ValueError: no supervision; settings other than the recipes' (attention weights, cosine, detached,
                un-normed); a batch without images; another attention than eager.
        """
        supervision = self._checked_supervision()
        inputs = self.inputs(batch)
        layout = supervision.layout(inputs)
        labels = inputs.pop("labels")
        del inputs["labelled"]
        if layout.samples_with_image == 0:
            raise ValueError("the naive step has nothing to do for a batch without images")
        # The projector is asked: the name under which the outputs hold v changes from one transformers to the next.
        projected: list[Tensor] = []  # one of [I, N, D]
        handle = self.parts.projector.register_forward_hook(lambda _module, _arguments, out: projected.append(out))
        try:
            outputs = self.forward(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        finally:
            handle.remove()
        lm = self.parts.model.loss_function(
            logits=outputs.logits,  # [B, T, V]
            labels=labels,
            vocab_size=outputs.logits.shape[-1],
            num_items_in_batch=counts.labelled_tokens,
        )
        das, sds = self._basic(projected[0].flatten(0, 1).float(), outputs, layout, supervision)
        das, sds = das / counts.samples_with_image, sds / counts.samples_with_image
        losses = SupervisionLosses(das=das, sds=sds, samples=layout.samples_with_image)
        return MicroBatchLoss(lm + lambdas[0] * das + lambdas[1] * sds, lm, losses)

    def _checked_supervision(self) -> Supervision:
        supervision = self.supervision
        if supervision is None or not supervision.active:
            raise ValueError("the naive step is BASIC's; without BASIC take TrainStep")
        settings = supervision.settings
        found = (settings.token_weights, settings.direction, settings.target_norm, settings.sinks, settings.detach)
        paper = found == ("attention", "cosine", "none", "keep", True)
        if not paper or (settings.guard or settings.sds_tokens) is not None:
            raise ValueError("the naive step has the paper's settings alone: attention, cosine, none, keep, detached")
        if self.parts.language_model.config._attn_implementation != "eager":
            raise ValueError("only eager attention hands out its maps; set model.attention to eager")
        return supervision

    def _basic(self, v: Tensor, outputs: Any, layout: Layout, supervision: Supervision) -> tuple[Tensor, Tensor]:
        """L_das and L_sds of a micro-batch with v [M, D], before they are divided by the step's samples."""
        K = supervision.layers
        hiddens = outputs.hidden_states[1 : K + 1]  # the first is the embeddings
        layer_weights = torch.tensor(supervision.target_plan.layer_weights, device=v.device)
        with torch.no_grad():
            target = self.refined_target(hiddens, layout.positions, layer_weights)
            maps = outputs.attentions[:K]
            mass = sum(self.column_sums(attention, layout.text, layout.visual) for attention in maps)
            per_token = mass / (K * layout.text.sum(1, keepdim=True).clamp_min(1))  # [B, T]
            weights = per_token.flatten()[layout.positions]  # [M], a_i
        words = supervision.vocabulary
        table = words.table.float() if words.excluded is None else words.table[~words.excluded].float()  # [V, D]
        scale = words.scale / supervision.settings.temperature
        das = self.direction_loss(v, target, weights)
        return das, self.vocab_kl(v, target, table if scale == 1 else table * scale, weights)
