"""The proof of an export: the run's model and the exported folder, side by side on the run's own data.

Inputs are compared first, token ids and pixel values bit for bit. Then, for equal inputs, the logits that predict an
answer's tokens, and greedy answers. The exported folder is opened as a stranger would, by plain transformers.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from basic_lite.data.conversation import conversation
from basic_lite.data.images import ImageRef, open_image, pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.tools.answer import answer, answer_length
from basic_lite.tools.evaluate import normalise, other_images
from basic_lite.tools.export.folder import Source
from basic_lite.tools.export.merge import Merge, MergeInto, written_name
from basic_lite.tools.export.template import messages_of
from basic_lite.train.bundle import load_trained

COMPARED_TOKENS = 32
"""Most tokens of a record's answer whose logits are compared."""
LIMITS: dict[MergeInto, float] = {"quantized": 0.01, "original": 0.5}
"""Most mean KL, in nats a token, with which an export passes."""


@dataclass(frozen=True)
class Drift:
    """How far a model's predictions are from the run's, over the answers' tokens.

    Attributes:
        largest: largest absolute difference of a logit.
        mean: mean absolute difference of the logits.
        kl: mean KL(run ‖ export) in nats a token.
        same_next: share of positions where the most likely token is the same.
    """

    largest: float
    mean: float
    kl: float
    same_next: float


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        drift: of the exported weights, and of those merged into the other base.
        held_out: the samples are of ``data.eval``, not of the training data.
        scored: samples that have a reference answer.
        exact: share of them that the run answers like the reference; None where there are none.
        exact_other_image: the same with the picture of another sample, as a control.
        lm_loss: the run's mean loss in nats over the compared tokens.
        lm_loss_other_image: the same with the picture of another sample.
    """

    samples: int
    tokens: int
    same_ids: int
    same_pixels: int
    same_answers: int
    merged_into: MergeInto
    drift: dict[MergeInto, Drift]
    limit: float
    held_out: bool
    scored: int
    exact: float | None
    exact_other_image: float | None
    lm_loss: float
    lm_loss_other_image: float
    answers: list[dict[str, str]]

    @property
    def passed(self) -> bool:
        """Inputs are equal, and the predictions within the limit; a NaN doesn't pass."""
        same = self.same_ids == self.same_pixels == self.samples
        return same and self.drift[self.merged_into].kl <= self.limit


@dataclass(frozen=True)
class Sample:
    """One record as training saw it.

    Attributes:
        ids: [T], prompt and answer.
        prompt: the ids up to the answer.
        pixel_values: [n, 3, h, w], or None.
        rows: positions whose logits predict a token of the answer.
    """

    record: Record
    ids: list[int]
    prompt: list[int]
    pixel_values: Tensor | None
    rows: Tensor


def choose_samples(source: Source, count: int) -> list[Sample]:
    """Up to ``count`` records of the run's data, evenly spread: held-out ones where the recipe names some.

    Raises:
        UserError: the data can't be read any more.
    """
    section = source.bundle.recipe.data
    try:
        records = load_records(section.eval or section.train, root=Path.cwd())
        spread = range(0, len(records), max(1, len(records) // count))
        samples: list[Sample] = []
        for index in spread:
            if len(samples) < count and (sample := _sample(source, records[index])) is not None:
                samples.append(sample)
    except UserError as error:
        raise UserError(
            f"the check reads the run's data, and that fails: {str(error).rstrip('.')}. "
            "Run this in the folder where the run was started, or leave the check out: --no-check"
        ) from error
    if not samples:
        raise UserError("the check found no usable record in the run's data; leave it out with --no-check")
    return samples


def _sample(source: Source, record: Record) -> Sample | None:
    """None for a record that training would have dropped."""
    recipe = source.bundle.recipe
    try:
        encoded = source.chat.encode(record, recipe.data.max_length)
        values = _pixels(source, record.images)
    except RecordProblem:
        if recipe.data.bad_records == "drop":
            return None
        raise
    rows = [place - 1 for place, label in enumerate(encoded.labels) if label >= 0][:COMPARED_TOKENS]
    return Sample(record, encoded.input_ids, source.chat.prompt(record), values, torch.tensor(rows))


def _pixels(source: Source, images: tuple[ImageRef, ...]) -> Tensor | None:
    """[n, 3, h, w] float32 as in training; None for no image."""
    fit = source.bundle.recipe.data.image_fit
    return pixels(images, source.frontend.image_processor, fit) if images else None


@torch.no_grad()
def logits_of(model: Any, samples: list[Sample]) -> list[Tensor]:
    """For each sample the logits [rows, V] in float32, on the CPU."""
    device = model.get_input_embeddings().weight.device
    found = []
    for sample in samples:
        inputs = {"input_ids": torch.tensor([sample.ids], device=device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if sample.pixel_values is not None:
            inputs["pixel_values"] = sample.pixel_values.to(device, _tower_dtype(model))
        found.append(model(**inputs, logits_to_keep=sample.rows.to(device)).logits[0].float().cpu())
    return found


def _tower_dtype(model: Any) -> torch.dtype:
    return next(model.model.vision_tower.parameters()).dtype


def drift_of(ours: list[Tensor], theirs: list[Tensor]) -> Drift:
    """Compare logits [rows, V] of several samples."""
    one, other = torch.cat(ours).double(), torch.cat(theirs).double()
    difference = (one - other).abs()
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return Drift(
        largest=difference.max().item(),
        mean=difference.mean().item(),
        kl=(p.exp() * (p - q)).sum(-1).mean().item(),
        same_next=(one.argmax(-1) == other.argmax(-1)).double().mean().item(),
    )


def check(
    source: Source,
    folder: Path,
    samples: list[Sample],
    *,
    limit: float | None,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> Checked:
    """Compare the run's model with the exported folder. One of them is in memory at a time.

    Args:
        limit: most mean KL in nats a token; None: LIMITS.
        progress: called with the answers that were made, three for each sample.
    """
    length = answer_length(source.chat, [sample.record for sample in samples])
    ours = _trained(source, samples, length, device, progress)
    _free()
    theirs = _exported(source, folder, samples, length, device, progress)
    references = [source.chat.reference(sample.record) for sample in samples]
    scored = [place for place, reference in enumerate(references) if reference]
    into = source.merge.into
    return Checked(
        samples=len(samples),
        tokens=sum(len(sample.rows) for sample in samples),
        same_ids=sum(ids == sample.prompt for ids, sample in zip(theirs.ids, samples, strict=True)),
        same_pixels=sum(theirs.same_pixels),
        same_answers=sum(one == other for one, other in zip(ours.answers, theirs.answers, strict=True)),
        merged_into=into,
        drift={name: drift_of(ours.logits, logits) for name, logits in theirs.logits.items()},
        limit=LIMITS[into] if limit is None else limit,
        held_out=source.bundle.recipe.data.eval is not None,
        scored=len(scored),
        exact=_exact(ours.answers, references, scored),
        exact_other_image=_exact(ours.answers_to_other_image, references, scored),
        lm_loss=_loss(ours.logits, samples),
        lm_loss_other_image=_loss(ours.logits_of_other_image, samples),
        answers=[
            {"place": Path(sample.record.place).name, "run": one, "export": other}
            for sample, one, other in zip(samples, ours.answers, theirs.answers, strict=True)
        ],
    )


def _exact(answers: list[str], references: list[str], scored: list[int]) -> float | None:
    if not scored:
        return None
    return sum(normalise(answers[place]) == normalise(references[place]) for place in scored) / len(scored)


def _loss(logits: list[Tensor], samples: list[Sample]) -> float:
    """Mean cross-entropy in nats of the tokens that follow the compared positions."""
    following = torch.cat([torch.tensor(sample.ids)[sample.rows + 1] for sample in samples])
    return functional.cross_entropy(torch.cat(logits), following).item()


@dataclass(frozen=True)
class _Trained:
    """Of the run's model: logits [rows, V] of each sample and its answers, also with another sample's picture."""

    logits: list[Tensor]
    answers: list[str]
    logits_of_other_image: list[Tensor]
    answers_to_other_image: list[str]


def _trained(
    source: Source, samples: list[Sample], length: int, device: torch.device, progress: Callable[[int], None]
) -> _Trained:
    loaded, bundle = load_trained(source.bundle.folder, device)
    records = [sample.record for sample in samples]
    # One at a time: padding changes the last digits.
    ask = partial(
        answer,
        loaded,
        source.chat,
        records,
        image_fit=bundle.recipe.data.image_fit,
        batch_size=1,
        max_new_tokens=length,
        progress=progress,
    )
    images = other_images(records, bundle.recipe.seed)
    swapped = [replace(sample, pixel_values=_pixels(source, images(place))) for place, sample in enumerate(samples)]
    return _Trained(logits_of(loaded.model, samples), ask(), logits_of(loaded.model, swapped), ask(images=images))


@dataclass(frozen=True)
class _Exported:
    """Of the exported folder: what its processor makes of the samples, logits by what was merged into, answers."""

    ids: list[list[int]]
    same_pixels: list[bool]
    logits: dict[MergeInto, list[Tensor]]
    answers: list[str]


def _exported(
    source: Source,
    folder: Path,
    samples: list[Sample],
    length: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> _Exported:
    processor = AutoProcessor.from_pretrained(str(folder))
    model = _open(folder, device)
    inputs = [_inputs(processor, sample) for sample in samples]
    answers = []
    for given in inputs:
        answers.append(_answer(model, processor, given, length))
        progress(1)
    logits = {source.merge.into: logits_of(model, samples)}
    other = source.merge.other()
    if other is not None and not any(parameter.is_meta for parameter in model.parameters()):
        _put(model, other)
        logits[other.into] = logits_of(model, samples)
    return _Exported(
        ids=[given["input_ids"][0].tolist() for given in inputs],
        same_pixels=[_same_pixels(given, sample) for given, sample in zip(inputs, samples, strict=True)],
        logits=logits,
        answers=answers,
    )


def _open(folder: Path, device: torch.device) -> Any:
    """The exported model; on a card that is too small for it, the rest is on the host."""
    place: Any = "auto" if device.type == "cuda" else {"": device}
    return AutoModelForImageTextToText.from_pretrained(str(folder), dtype="auto", device_map=place).eval()


def _inputs(processor: Any, sample: Sample) -> dict[str, Any]:
    """What a chat program would give the exported model for the sample's last question."""
    turns = conversation(sample.record, answered=False)
    messages = messages_of(turns[:-1] if turns[-1].role == "gpt" else turns)
    images = iter(sample.record.images)
    for part in (part for message in messages for part in message["content"]):
        if part["type"] == "image":
            part["image"] = open_image(next(images))
    made = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(made)


def _same_pixels(given: dict[str, Any], sample: Sample) -> bool:
    if sample.pixel_values is None:
        return given.get("pixel_values") is None
    return torch.equal(torch.as_tensor(given["pixel_values"]), sample.pixel_values)


@torch.no_grad()
def _answer(model: Any, processor: Any, given: dict[str, Any], length: int) -> str:
    device = model.get_input_embeddings().weight.device
    inputs = {name: tensor.to(device) for name, tensor in given.items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(_tower_dtype(model))
    out = model.generate(**inputs, max_new_tokens=length)
    text: str = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


@torch.no_grad()
def _put(model: Any, merge: Merge) -> None:
    """Replace the weights in which two merges differ."""
    for name, parameter in model.named_parameters():
        if (written := written_name(name)) in merge.layout.quantized:
            parameter.copy_(merge.tensor(written))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
