"""The refinement curve: does the LLM make visual embeddings more word-like, and is v̂ better than v?

BASIC can help only if v̂ is better than v. Score: the share of visual tokens whose nearest word (cosine with E) is in
the sample's text, minus that share for other samples' texts. The control removes words that every text has. No labels
are needed. v̂ is better where the 95 % interval of its score minus v's is above 0. Method: arXiv 2508.06895, analysis of
visual embeddings; the measure is ours.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from basic_lite.intervals import refinement_gains
from basic_lite.resampling import LEAST_SAMPLES, Interval, Verdict, signed
from basic_lite.supervision.health import Health, HealthMeter
from basic_lite.supervision.layout import Layout, find_layout
from basic_lite.supervision.supervision import Supervision
from basic_lite.supervision.taps import evaluating, watch_layers
from basic_lite.supervision.words import Words

# Of each sample, at most so many visual tokens, spread evenly, are looked up in the vocabulary: the search costs most.
SEARCHED_PATCHES = 64


@dataclass(frozen=True)
class RefinementCurve:
    """Shares of visual tokens, 0 to 1, at v, after each layer h1..hL, and at v̂ (``target``)."""

    places: list[str]
    own: list[float]  # nearest word occurs in the sample's own text
    control: list[float] | None  # … in another sample's text, mean over all others; None with fewer than two samples
    samples: int
    patches: int  # that were looked up
    gains: list[Interval]  # score − v's score, at h1..hL and the target; empty with too few samples for an interval
    health: Health | None  # None: nothing was measured

    @property
    def score(self) -> list[float] | None:
        """own − control at each place."""
        if self.control is None:
            return None
        # Rounded, so that equal shares give 0, not 1e-18.
        return [round(own - other, 12) for own, other in zip(self.own, self.control, strict=True)]

    @property
    def gain(self) -> Interval | None:
        """Score at v̂ minus score at v; None where it wasn't measured."""
        return self.gains[-1] if self.gains else None

    @property
    def gain_values(self) -> list[float]:
        """Score at h1..hL and the target minus score at v, of any number of samples; 0 where there is no score."""
        return [round(one - self.score[0], 12) for one in self.score[1:]] if self.score else [0.0] * len(self.own[1:])

    @property
    def layer_gains(self) -> list[float]:
        """Those of the layers."""
        return self.gain_values[:-1]

    def gain_text(self, number: int) -> str:
        """The gain at a place, counted from h1, with its interval where there is one."""
        value, gain = signed(self.gain_values[number]), self.gains[number] if self.gains else None
        if gain is None:
            return value
        # An interval without width would say that it is known exactly.
        return gain.text if gain.low < gain.high else f"{value} (in every sample)"

    @property
    def verdict(self) -> Verdict:
        """Whether BASIC's premise holds: v̂ is better than v."""
        return "can't tell" if self.gain is None else self.gain.verdict(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """The curve as a JSON object."""
        return {**asdict(self), "score": self.score}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "RefinementCurve":
        """What ``to_dict`` gave. Older logs have no intervals, no health, or intervals of too few samples."""
        health, enough = record.get("health"), record["samples"] >= LEAST_SAMPLES
        gains = [Interval(*gain) for gain in record.get("gains", []) if enough]
        always = {name: record[name] for name in ("places", "own", "control", "samples", "patches")}
        return cls(**always, gains=gains, health=None if health is None else Health(**health))

    def comparison(self, which: str = "samples", *, judged: bool = True) -> str:
        """v against v̂ with the interval and the verdict, as log, report and card say it.

        Args:
            which: what the samples are called.
            judged: with the verdict.
        """
        if self.score is None:
            return "no refinement curve: it needs two samples with a picture"
        without = ", without an interval" if self.gain is None else ""
        if self.samples < LEAST_SAMPLES:
            without = f", too few pictures for an interval, {LEAST_SAMPLES} at least"
        verdict = f": {self.verdict}" if judged else ""
        scores = f"v {signed(self.score[0])} → v̂ {signed(self.score[-1])}"
        return f"{scores}, gain {self.gain_text(-1)} over {self.samples} {which}{without}{verdict}"

    def summary(self, *, judged: bool = True) -> str:
        """The curve in a line, with its verdict or without."""
        if self.score is None:
            return self.comparison()
        layers = self.score[1:-1]
        best = max(range(len(layers)), key=layers.__getitem__)
        return (
            "BASIC's premise (README): visual tokens nearest to a word of their own text, beyond chance: "
            f"{self.comparison(judged=judged)} (best after layer {best + 1}: {signed(layers[best])})"
            + ("" if judged else "; some of these chose v̂, so the gate asks other samples")
        )

    def warning(self) -> str | None:
        """The warning for a v̂ that is below v beyond doubt; None for any other."""
        if self.verdict != "fails" or self.gain is None:
            return None
        return (
            "BASIC's premise does not hold here: the target v̂ matches the sample's own words less often than the "
            f"projector's output v already does, by {self.gain.text} (95 % interval, shuffled control subtracted; "
            f"{self.patches} patches of {self.samples} samples). Supervision may harm: compare with "
            "supervision.enabled=false, or try other supervision.layers"
        )


@dataclass(frozen=True)
class SeenPatches:
    """What one forward of each sample showed: the nearest words of its visual tokens, at each place.

    Curves over some of the samples come from it, and those of another target, without another forward.
    """

    places: list[str]
    words: Words
    texts: list[set[str]]  # of each sample
    nearest: list[list[list[str]]]  # [sample][place][patch]
    rows: Mapping[int, Tensor]  # sample → outputs of its layers, [L, patches, D], on the host; of the kept samples
    health: Health | None

    def curve(self, samples: Sequence[int] | None = None) -> RefinementCurve:
        """The curve over all samples, or over some of them, which has no health."""
        chosen = range(len(self.texts)) if samples is None else samples
        nearest = [self.nearest[i] for i in chosen]
        matches = _matches([self.texts[i] for i in chosen], nearest, len(self.places))
        own, control = _shares(matches)
        patches = sum(len(sample[0]) for sample in nearest)
        health, gains = self.health if samples is None else None, refinement_gains(matches)
        return RefinementCurve(self.places, own, control, len(nearest), patches, gains, health)

    @torch.no_grad()
    def with_target(self, supervision: Supervision, samples: Sequence[int]) -> RefinementCurve:
        """v and v̂ alone, v̂ made as ``supervision`` makes it now; over samples that were kept.

        Peak extra bytes: 8·D for each patch that is looked up, one sample's rows, and what the search needs.
        """
        targets = [_target_of(supervision, self.rows[i]) for i in samples]
        found = supervision.vocabulary.nearest(torch.cat(targets)).cpu().split([len(rows) for rows in targets])
        nearest = [[self.nearest[i][0], self.words.of(ids.tolist())] for i, ids in zip(samples, found, strict=True)]
        texts = [self.texts[i] for i in samples]
        return SeenPatches(["v", "target"], self.words, texts, nearest, {}, None).curve()


def refinement_curve(
    supervision: Supervision,
    batches: Iterable[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    each_layer: bool = True,
) -> RefinementCurve:
    """The curve over all samples of ``batches``; see ``see_patches``."""
    return see_patches(supervision, batches, tokenizer, each_layer=each_layer).curve()


@torch.no_grad()
def see_patches(
    supervision: Supervision,
    batches: Iterable[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    each_layer: bool = True,
    kept: Container[int] = (),
) -> SeenPatches:
    """Look at a few batches, streaming: of the hidden states only a few rows are kept, for one forward.

    Layers are measured as they are, but without their massive dimensions where these are known (``target_norm:
    layer``). v̂ is measured as it is trained on.

    A sample's text is every token of it that is no padding, image or special token. Words are compared as
    text, tokens being decoded, stripped and case-folded, so " Dog" and "dog" are one word; the pieces of a
    longer word each count. Only pieces with three letters, or one letter of a script written without spaces,
    can match: punctuation, digits and short pieces occur in every text and say nothing.

    The model runs in evaluation mode, and each module's mode is put back; generators and gradients are not
    touched.

    Args:
        batches: on the model's device; wrap the call in the autocast that the training uses.
        each_layer: False: v and v̂ alone, which costs far less.
        kept: numbers of samples whose rows after each layer go to the host, for ``SeenPatches.with_target``. In
            bytes: their patches that are looked up, times L·D, in the type of the hidden states.

    Raises:
        UserError: the vocabulary table can't be used.
    """
    parts = supervision.parts
    layers = range(1, len(parts.layers) + 1) if each_layer else ()
    places = ["v", *(f"h{h}" for h in layers), "target"]
    words = Words(tokenizer, {*supervision.special_ids.tolist(), *tokenizer.all_special_ids, parts.image_token_id})
    meter = HealthMeter(len(places), float(supervision.vocabulary.mean_norm()))
    seen = SeenPatches(places, words, [], [], rows := {}, None)
    with evaluating(parts.model):
        for batch in batches:
            layout = find_layout(batch, parts.image_token_id, "all")  # on the CPU
            if layout.samples_with_image == 0:
                continue
            found = nearest_by_place(supervision, batch, layout, meter, each_layer=each_layer)
            for row, ids, states in zip(layout.rows_with_image.tolist(), *found, strict=True):
                if len(seen.texts) in kept:
                    rows[len(seen.texts)] = layers_on_host(supervision, states)
                text = batch["input_ids"][row].cpu()[layout.valid[row] & ~layout.visual[row]]
                seen.texts.append(set(words.of(text.tolist())))
                seen.nearest.append([words.of(place) for place in ids.tolist()])
            del found, states  # else a batch's rows are there while the next one goes through the model
    return replace(seen, health=meter.health())


def nearest_by_place(
    supervision: Supervision, batch: Mapping[str, Tensor], layout: Layout, meter: HealthMeter, *, each_layer: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Ids of the nearest words, [places, patches] for each sample, on the CPU; and its rows at all places, [P, R, D].

    Peak extra bytes: 8·D for each place and patch that is looked up, half of it to the end, and what the search needs.
    """
    parts, plan, device = supervision.parts, supervision.plan, supervision.device
    target_place = len(parts.layers) + 1 if each_layer else 1
    positions = layout.positions.to(device)
    stream = supervision.operations.target_stream(None)
    kept = layout.visual.flatten()[layout.positions].nonzero().squeeze(1).to(device)
    tokens = layout.patches[layout.rows_with_image].tolist()
    chosen = [_spread(count) for count in tokens]
    starts = np.cumsum([0, *tokens[:-1]]).tolist()
    searched = torch.cat([start + spread for start, spread in zip(starts, chosen, strict=True)]).to(device)
    found: dict[int, Tensor] = {}  # place → rows [searched, D]

    def keep(place: int, rows: Tensor, seen: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        rows = rows.index_select(0, kept)
        meter.add(place, rows, tokens)
        found[place] = seen(rows.index_select(0, searched)).float()

    def keep_layer(h: int, hidden: Tensor) -> None:
        if each_layer:
            keep(h, hidden.flatten(0, 1).index_select(0, positions), partial(plan.without_massive, h))
        if plan.target.adds(h):
            stream.add(*plan.share(h, hidden, positions, supervision.operations))

    def keep_v(v: Tensor) -> None:
        rows = v.reshape(-1, v.shape[-1])
        keep(0, rows.index_select(0, positions) if parts.layer_inputs else rows)

    watch_layers(parts, batch, keep_layer, keep_v)
    assert stream.target is not None
    keep(target_place, stream.target)
    # One search for all places: on a CPU, reading the table takes as long as comparing a few hundred rows with it.
    rows = torch.stack([found[place] for place in range(target_place + 1)])
    nearest = supervision.vocabulary.nearest(rows.flatten(0, 1)).cpu().view(target_place + 1, -1)
    sizes = [len(spread) for spread in chosen]
    return list(nearest.split(sizes, dim=1)), list(rows.split(sizes, dim=1))


def layers_on_host(supervision: Supervision, states: Tensor) -> Tensor:
    """A copy of a sample's rows after each layer, [L, R, D] in the model's own type, from those at all places."""
    return states[1:-1].to("cpu", supervision.parts.embeddings.weight.dtype, copy=True)


def _target_of(supervision: Supervision, rows: Tensor) -> Tensor:
    """v̂ [R, D] float32 from the outputs of all layers, [L, R, D], as the taps make it."""
    stream, plan = supervision.operations.target_stream(None), supervision.plan
    positions = torch.arange(rows.shape[1], device=supervision.device)
    for h, weight in enumerate(plan.target.layer_weights, start=1):
        if weight > 0:
            stream.add(*plan.share(h, rows[h - 1][None].to(supervision.device), positions, supervision.operations))
    assert stream.target is not None
    return stream.target


def _spread(count: int) -> Tensor:
    """At most SEARCHED_PATCHES of ``count`` visual tokens, spread evenly."""
    return torch.linspace(0, count - 1, min(SEARCHED_PATCHES, count), dtype=torch.float64).round().long()


def _matches(texts: list[set[str]], nearest: list[list[list[str]]], places: int) -> NDArray[np.float64]:
    """[places, n, n]: the share of sample i's patches whose nearest word is in text j."""
    column = {word: i for i, word in enumerate(sorted(set().union(*texts) - {""}))}
    occurs = np.zeros((len(texts), len(column)))
    for row, text in enumerate(texts):
        occurs[row, [column[word] for word in text if word]] = 1
    matches = np.zeros((places, len(texts), len(texts)))
    for place in range(places):
        share = np.zeros_like(occurs)  # of sample's patches whose nearest word is this
        for row, sample in enumerate(nearest):
            for word in sample[place]:
                if word in column:
                    share[row, column[word]] += 1 / len(sample[place])
        matches[place] = share @ occurs.T
    return matches


def _shares(matches: NDArray[np.float64]) -> tuple[list[float], list[float] | None]:
    """Own and control share at each place, mean over samples; [places, n, n]."""
    count = matches.shape[1]
    if count == 0:
        return [0.0] * len(matches), None
    own = np.trace(matches, axis1=1, axis2=2)
    control = (matches.sum(axis=(1, 2)) - own) / (count * (count - 1)) if count > 1 else None
    return (own / count).tolist(), None if control is None else control.tolist()
