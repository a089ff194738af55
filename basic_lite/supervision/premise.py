"""The refinement curve: does the LLM make visual embeddings more word-like, and is v̂ better than v?

BASIC can help only if v̂ is better than v. Score: the share of visual tokens whose nearest word (cosine with E) is in
the sample's text, minus that share for other samples' texts. The control removes words that every text has. No labels
are needed. Method: arXiv 2508.06895, analysis of visual embeddings; the measure is ours.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.supervision import Supervision
from basic_lite.supervision.taps import hooked


@dataclass(frozen=True)
class RefinementCurve:
    """Shares of visual tokens, 0 to 1, at v, after each layer h1..hL, and at v̂ (``target``)."""

    places: list[str]
    own: list[float]  # nearest word occurs in the sample's own text
    control: list[float] | None  # … in another sample's text, mean over all others; None with fewer than two samples
    samples: int
    patches: int

    @property
    def score(self) -> list[float] | None:
        """own − control at each place."""
        if self.control is None:
            return None
        return [own - other for own, other in zip(self.own, self.control, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The curve as a JSON object."""
        return {**asdict(self), "score": self.score}

    def summary(self) -> str:
        """The curve in a line."""
        if self.score is None:
            return "no refinement curve: it needs two samples with a picture"
        v, *layers, target = self.score
        best = max(range(len(layers)), key=layers.__getitem__)
        return (
            "BASIC's premise (README): visual tokens nearest to a word of their own text, beyond chance: "
            f"v {v:+.3f} → v̂ {target:+.3f}, best after layer {best + 1}: {layers[best]:+.3f}"
        )

    def warning(self) -> str | None:
        """The warning for a v̂ that is below v; None if it isn't, or if too few samples were seen."""
        score = self.score
        if score is None or round(score[-1], 3) >= round(score[0], 3):
            return None
        return (
            "BASIC's premise does not hold here: the target v̂ matches the sample's own words less often than "
            f"the projector's output v already does ({score[-1]:+.3f} against {score[0]:+.3f}, shuffled "
            f"control subtracted; {self.patches} patches of {self.samples} samples). Supervision may harm: "
            "compare with supervision.enabled: false, or try other supervision.layers"
        )


@torch.no_grad()
def refinement_curve(
    supervision: Supervision, batches: Iterable[Mapping[str, Tensor]], tokenizer: PreTrainedTokenizerBase
) -> RefinementCurve:
    """Measure the curve on a few batches, streaming: hidden states are reduced to nearest words as they pass.

    A sample's text is every token of it that is no padding, image or special token. Words are compared as
    text, tokens being decoded, stripped and case-folded, so " Dog" and "dog" are one word; the pieces of a
    longer word each count. Only pieces with three letters, or one letter of a script written without spaces,
    can match: punctuation, digits and short pieces occur in every text and say nothing.

    The model runs in evaluation mode, and each module's mode is put back; generators and gradients are not
    touched.

    Args:
        batches: on the model's device; wrap the call in the autocast that the training uses.

    Raises:
        UserError: the vocabulary table can't be used.
    """
    parts = supervision.parts
    places = ["v", *(f"h{h}" for h in range(1, len(parts.layers) + 1)), "target"]
    words = _Words(tokenizer, {*supervision.special_ids.tolist(), *tokenizer.all_special_ids, parts.image_token_id})
    texts: list[set[str]] = []
    nearest: list[list[list[str]]] = []  # [sample][place][patch]
    with _evaluating(parts.model):
        for batch in batches:
            layout = find_layout(batch, parts.image_token_id, "all")  # on the CPU
            if layout.positions.numel() == 0:
                continue
            positions = layout.positions.to(supervision.device)
            found = _nearest_by_place(supervision, batch, positions)  # [places, M]
            kept = layout.visual.flatten()[layout.positions]
            for row in layout.rows_with_image.tolist():
                ids = batch["input_ids"][row].cpu()[layout.valid[row] & ~layout.visual[row]]
                texts.append(set(words.of(ids.tolist())))
                own_patches = (layout.sample == row) & kept
                nearest.append([words.of(place.tolist()) for place in found[:, own_patches]])
    own, control = _shares(texts, nearest, len(places))
    return RefinementCurve(places, own, control, len(texts), sum(len(sample[0]) for sample in nearest))


def _nearest_by_place(supervision: Supervision, batch: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """Ids of the nearest words at each place, [places, M] on the CPU."""
    parts, plan = supervision.parts, supervision.plan
    stream = supervision.operations.target_stream(None)
    found: dict[int, Tensor] = {}

    def keep(place: int, rows: Tensor) -> None:
        found[place] = supervision.vocabulary.nearest(rows).cpu()

    def keep_layer(h: int, hidden: Tensor) -> None:
        keep(h, hidden.flatten(0, 1).index_select(0, positions))
        if h <= plan.target.last and plan.target.layer_weights[h - 1] > 0:
            stream.add(*plan.share(h, hidden, positions, supervision.operations))

    with ExitStack() as hooks:
        hooks.enter_context(hooked(parts.projector, lambda out: keep(0, out.reshape(-1, out.shape[-1]))))
        for h, layer in enumerate(parts.layers, start=1):
            hooks.enter_context(hooked(layer, partial(keep_layer, h)))
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values") if k in batch}
        parts.model.model(**inputs, use_cache=False)  # without the head: no [B, T, V] logits
    assert stream.target is not None
    keep(len(parts.layers) + 1, stream.target)
    return torch.stack([found[place] for place in range(len(parts.layers) + 2)])


class _Words:
    """Token ids → words; "" for what can't match. Each id is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ignored: set[int]) -> None:
        self._tokenizer = tokenizer
        self._known = dict.fromkeys(ignored, "")

    def of(self, ids: list[int]) -> list[str]:
        for i in ids:
            if i not in self._known:
                self._known[i] = self._word(self._tokenizer.decode([i]))
        return [self._known[i] for i in ids]

    @staticmethod
    def _word(piece: str) -> str:
        word = piece.strip().strip("#▁").casefold()
        letters = [c for c in word if c.isalpha()]
        unspaced = any(ord(c) >= 0x2E80 for c in letters)  # CJK and beyond
        return word if len(letters) >= 3 or unspaced else ""


def _shares(
    texts: list[set[str]], nearest: list[list[list[str]]], places: int
) -> tuple[list[float], list[float] | None]:
    """Own and control share at each place, mean over samples."""
    count = len(texts)
    if count == 0:
        return [0.0] * places, None
    column = {word: i for i, word in enumerate(sorted(set().union(*texts) - {""}))}
    occurs = np.zeros((count, len(column)))
    for row, text in enumerate(texts):
        occurs[row, [column[word] for word in text if word]] = 1
    own, control = [], []
    for place in range(places):
        share = np.zeros_like(occurs)  # of sample's patches whose nearest word is this
        for row, sample in enumerate(nearest):
            for word in sample[place]:
                if word in column:
                    share[row, column[word]] += 1 / len(sample[place])
        matches = share @ occurs.T  # [sample, text]
        own.append(float(matches.diagonal().mean()))
        if count > 1:
            control.append(float((matches.sum() - matches.trace()) / (count * (count - 1))))
    return own, control if count > 1 else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
