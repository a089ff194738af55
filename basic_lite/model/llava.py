"""The model class that is trained: LLaVA with a float32 projector and a lean language-modelling loss.

Module names are those of ``transformers.LlavaForConditionalGeneration``, so its checkpoints, PEFT adapters and
merged exports fit without renaming.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaMultiModalProjector

from basic_lite.sizes import MIB

CHUNK_BYTES = 128 * MIB
"""Bytes one chunk of float32 logits may take. Each chunk reads the head's weights twice; with a vocabulary of 152,000
it has 220 rows; by count an RTX 4090 reads for longer than it multiplies below some 165."""


class Float32Projector(LlavaMultiModalProjector):
    """The two-layer projector, computed in float32 whatever autocast says.

    BASIC compares its output with the LLM's refined embeddings; in bf16 that difference would drown in rounding.
    """

    def forward(self, image_features: Tensor) -> Tensor:
        """[I, N, D_vision] any float type → [I, N, D] in the projector's own type."""
        with torch.autocast(image_features.device.type, enabled=False):
            return super().forward(image_features.to(self.linear_1.weight.dtype))


class BasicLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA whose LM loss is computed on the labelled rows only, so [B, T, V] logits never exist in training."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = Float32Projector(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        labelled: Tensor | None = None,
        image_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """The parent's forward. With ``labels`` [B, T] it returns ``loss`` and no logits.

        ``num_items_in_batch``: labelled tokens of the whole accumulated step, which the summed loss is divided by;
        None: those of this batch. Equal to the parent's loss for the same arguments.
        ``labelled``: ``labelled_positions`` of the labels; None: computed here, and the host waits for the device.
        ``image_positions``: those of the image tokens, [M] int64 into the flattened [B, T]; None: the parent looks for
        them, and the host waits for the device in the forward and in the backward.

        Raises:
            ValueError: the pictures give another number of tokens than there are ``image_positions``.
        """
        if image_positions is not None and input_ids is not None and pixel_values is not None:
            kwargs["inputs_embeds"] = self._embeddings_with_images(input_ids, pixel_values, image_positions)
        else:
            kwargs |= {"input_ids": input_ids, "pixel_values": pixel_values}
        kwargs["attention_mask"] = attention_mask
        if labels is None:
            return super().forward(**kwargs)
        kwargs.setdefault("use_cache", False)
        hidden = self.model(**kwargs).last_hidden_state  # [B, T, D]
        rows = labelled_positions(labels) if labelled is None else labelled
        predicting = hidden.flatten(0, 1).index_select(0, rows)  # [R, D]
        loss = lm_loss(predicting, self.lm_head, labels.flatten().index_select(0, rows + 1), num_items_in_batch)
        return LlavaCausalLMOutputWithPast(loss=loss)

    def _embeddings_with_images(self, input_ids: Tensor, pixel_values: Tensor, positions: Tensor) -> Tensor:
        """What the LLM gets, [B, T, D]: the tokens' embeddings, and the projector's output at the images' positions."""
        embeddings = self.get_input_embeddings()(input_ids)
        per_image = self.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        features = torch.cat(list(per_image)).to(embeddings.device, embeddings.dtype)  # [M, D]
        if len(features) != len(positions):
            raise ValueError(f"the batch has {len(positions)} image tokens, and its pictures give {len(features)}")
        return embeddings.flatten(0, 1).index_copy(0, positions, features).view_as(embeddings)


def _chunk_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), labels, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Makes the gradient in the forward, chunk by chunk, so that nothing of [R, V] is kept or computed twice.

    That is the idea of Liger's fused linear cross-entropy. Its kernel reads and writes less, but with its default
    chunks it goes through the head's weights many times, and it waits for the device (bench/README.md).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, labels: Tensor, divisor: Tensor | int, chunk: int) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        share = torch.ones_like(total) / divisor
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = hidden[part].detach()
            with torch.set_grad_enabled(gradient is not None):
                loss = _chunk_loss(rows.requires_grad_(gradient is not None), head, labels[part])
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(loss, rows, share)
            total = total + loss.detach()
        ctx.save_for_backward(gradient)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def lm_loss(hidden: Tensor, head: nn.Module, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Summed cross-entropy divided by ``num_items``; equals transformers' ``ForCausalLMLoss``.

    The head is frozen, so there is no gradient for it.

    Peak extra bytes: 3 × min(CHUNK_BYTES, 4 · rows · V) (logits, their gradient, the softmax). With several chunks that
    is in the forward, and the size of ``hidden`` stays until the backward.

    Args:
        hidden: [R, D], the final hidden states that predict a labelled token, packed.
        head: the LLM's output layer, D → V.
        labels: [R], the token ids to predict.
        num_items: divisor, labelled tokens of the whole optimizer step; None: R.
    """
    rows = hidden.shape[0]
    divisor = rows if num_items is None else num_items
    if rows == 0:
        return hidden.sum() * 0.0
    chunk = _rows_at_once(head)
    if rows <= chunk:
        return _chunk_loss(hidden, head, labels) / divisor
    loss: Tensor = _ChunkedLoss.apply(hidden, head, labels, divisor, chunk)
    return loss


def _rows_at_once(head: nn.Module) -> int:
    return max(1, CHUNK_BYTES // (4 * int(head.weight.shape[0])))


class Likelihoods(NamedTuple):
    """How likely given texts are.

    Attributes:
        nats: [B] float64, −log p of a row's labelled tokens, summed.
        likeliest: [B] bool, whether each of them is the likeliest token there.
    """

    nats: Tensor
    likeliest: Tensor


@torch.no_grad()
def likelihoods_of(hidden: Tensor, head: nn.Module, labels: Tensor) -> Likelihoods:
    """How likely the labelled tokens of each row are, on the host; ``lm_loss`` without a gradient, row by row.

    Peak extra bytes: the labelled rows of ``hidden``, and 2 × min(CHUNK_BYTES, 4 · R · V) (logits, their log-softmax;
    half a chunk more under a head of 16 bit).

    Args:
        hidden: [B, T, D], the final hidden states. Token t is predicted from t − 1.
        head: the LLM's output layer, D → V.
        labels: [B, T] on any device, token ids or −100.
    """
    places = labelled_positions(labels)  # [R]
    predicting = hidden.flatten(0, 1).index_select(0, places.to(hidden.device))  # [R, D]
    wanted = labels.flatten().index_select(0, places + 1).to(hidden.device)
    chunk = _rows_at_once(head)
    nats, others = [], []
    for part, tokens in zip(predicting.split(chunk), wanted.split(chunk), strict=True):
        logits = head(part).float()  # [chunk, V]
        nats.append(functional.cross_entropy(logits, tokens, reduction="none").cpu())
        others.append((logits.argmax(-1) != tokens).cpu())
    rows, zeros = (places // labels.shape[1]).cpu(), torch.zeros(len(labels), dtype=torch.float64)
    # On the host, as some devices have no float64.
    sums, wrong = (zeros.index_add(0, rows, torch.cat(one).double()) for one in (nats, others))
    return Likelihoods(sums, wrong == 0)


def labelled_positions(labels: Tensor) -> Tensor:
    """Where a labelled token is predicted, [R] int64 into the flattened [B, T]: token t is predicted from t − 1."""
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def freeze_in_no_grad(module: nn.Module) -> None:
    """Freeze ``module`` and run its forward under ``no_grad``.

    Freezing alone is not enough: PEFT and checkpointing may make a module's inputs require gradients, and then a frozen
    tower would keep its graph.
    """
    module.requires_grad_(False)
    module.eval()
    outside: list[bool] = []

    def enter(*_: Any) -> None:
        outside.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def leave(*_: Any) -> None:
        torch.set_grad_enabled(outside.pop())

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
