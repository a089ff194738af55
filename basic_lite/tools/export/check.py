"""The proof of an export: the run's model and the exported folder, side by side on the run's own data.

Inputs are compared first, token ids and pixel values bit for bit. Then, for equal inputs, the logits that predict an
answer's tokens, and greedy answers. The exported folder is opened as a stranger would, by plain transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from basic_lite.data.images import open_image
from basic_lite.model.device import computes_in
from basic_lite.scoring.controls import other_images
from basic_lite.scoring.metrics.exact import normalise
from basic_lite.tools.export.folder import Source
from basic_lite.tools.export.gguf.notes import gelu_difference, picture_difference
from basic_lite.tools.export.merge import Merge, MergeInto, written_name
from basic_lite.tools.export.samples import Sample, asked, pixels_of
from basic_lite.tools.export.template import as_strings, messages_of
from basic_lite.training.answer import answer, answer_length
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import require_as_opened

LIMIT = 0.01
"""Most mean KL, in nats a token, with which an export passes that should be what was trained."""
LIMIT_ORIGINAL = 0.05
"""The same where LoRA was merged into weights that it wasn't trained on. More passes where the adapter does much more
than the change of the weights: the KL may be as much as half of that without the adapter."""


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
class LlamaCppDrift:
    """What llama.cpp does otherwise, measured on the samples' pictures.

    Attributes:
        pixels: mean absolute difference of the pixels in grey levels, of 255.
        projector: how far its GELU moves the projector's output, relative to the output's size.
    """

    pixels: float
    projector: float


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        drift: of the exported weights, and of those merged into the other base.
        limit: most KL with which it passes.
        kl_without_lora: KL of the exported weights without the adapter, which says how much the adapter does.
        held_out: the run kept the samples for evaluation; False: it didn't, or that can't be told.
        scored: samples that have a reference answer.
        exact: share of them that the run answers like the reference; None where there are none.
        exact_other_image: the same with the picture of another sample, as a control.
        lm_loss: the run's mean loss in nats over the compared tokens.
        lm_loss_other_image: the same with the picture of another sample.
        llama_cpp: what llama.cpp does otherwise; None where no GGUF files were written.
    """

    samples: int
    tokens: int
    same_ids: int
    same_pixels: int
    same_answers: int
    merged_into: MergeInto
    drift: dict[MergeInto, Drift]
    limit: float
    kl_without_lora: float | None
    held_out: bool
    scored: int
    exact: float | None
    exact_other_image: float | None
    lm_loss: float
    lm_loss_other_image: float
    answers: list[dict[str, str]]
    llama_cpp: LlamaCppDrift | None

    @property
    def passed(self) -> bool:
        """Inputs are equal, and the predictions within the limit; a NaN doesn't pass."""
        same = self.same_ids == self.same_pixels == self.samples
        return same and self.drift[self.merged_into].kl <= self.limit


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
    """Compare logits [rows, V] of several samples, one at a time: in float64 all of them would be large."""
    largest, means, kls, same = [], [], [], []
    for one, other in zip(ours, theirs, strict=True):
        difference = (one - other).abs()
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        largest.append(difference.max())
        means.append(difference.mean(-1))
        kls.append((p.exp() * (p - q)).sum(-1))
        same.append((one.argmax(-1) == other.argmax(-1)).double())
    return Drift(
        largest=torch.stack(largest).max().item(),
        mean=torch.cat(means).mean().item(),
        kl=torch.cat(kls).mean().item(),
        same_next=torch.cat(same).mean().item(),
    )


def check(
    source: Source,
    folder: Path,
    samples: list[Sample],
    *,
    limit: float | None,
    gguf: bool,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> Checked:
    """Compare the run's model with the exported folder. One of them is in memory at a time.

    Args:
        limit: most mean KL in nats a token; None: see LIMIT and LIMIT_ORIGINAL.
        gguf: also measure what llama.cpp does otherwise.
        progress: called with the answers that were made, three for each sample.
    """
    length = answer_length(source.chat, [sample.record for sample in samples])
    ours = _trained(source, samples, length, device, progress)
    clear_device_cache(garbage_collection=True)
    theirs = _exported(source, folder, samples, length, gguf, device, progress)
    references = [source.chat.reference(sample.record) for sample in samples]
    scored = [place for place, reference in enumerate(references) if reference]
    into = source.merge.into
    without = None if theirs.without_lora is None else drift_of(ours.logits, theirs.without_lora).kl
    return Checked(
        samples=len(samples),
        tokens=sum(len(sample.rows) for sample in samples),
        same_ids=sum(ids == sample.prompt for ids, sample in zip(theirs.ids, samples, strict=True)),
        same_pixels=sum(theirs.same_pixels),
        same_answers=sum(one == other for one, other in zip(ours.answers, theirs.answers, strict=True)),
        merged_into=into,
        drift={name: drift_of(ours.logits, logits) for name, logits in theirs.logits.items()},
        limit=_limit(source.merge, without) if limit is None else limit,
        kl_without_lora=without,
        held_out=all(sample.held_out for sample in samples),
        scored=len(scored),
        exact=_exact(ours.answers, references, scored),
        exact_other_image=_exact(ours.answers_to_other_image, references, scored),
        lm_loss=_loss(ours.logits, samples),
        lm_loss_other_image=_loss(ours.logits_of_other_image, samples),
        answers=[
            {"place": Path(sample.record.place).name, "run": one, "export": other}
            for sample, one, other in zip(samples, ours.answers, theirs.answers, strict=True)
        ],
        llama_cpp=theirs.llama_cpp,
    )


def _limit(merge: Merge, kl_without_lora: float | None) -> float:
    if merge.into == "quantized" or not merge.was_quantized:
        return LIMIT
    return max(LIMIT_ORIGINAL, (kl_without_lora or 0.0) / 2)


def _exact(answers: list[str], references: list[str], scored: list[int]) -> float | None:
    if not scored:
        return None
    return sum(normalise(answers[place]) == normalise(references[place]) for place in scored) / len(scored)


def _loss(logits: list[Tensor], samples: list[Sample]) -> float:
    """Mean cross-entropy in nats of the tokens that follow the compared positions."""
    losses = [
        functional.cross_entropy(one, torch.tensor(sample.ids)[sample.rows + 1], reduction="none")
        for one, sample in zip(logits, samples, strict=True)
    ]
    return torch.cat(losses).mean().item()


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
    loaded, bundle = load_trained(source.bundle.folder, device, told=True)
    require_as_opened(source.bundle, source.bundle.weights)
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
    swapped = [replace(sample, pixel_values=pixels_of(source, images(place))) for place, sample in enumerate(samples)]
    return _Trained(logits_of(loaded.model, samples), ask(), logits_of(loaded.model, swapped), ask(images=images))


@dataclass(frozen=True)
class _Exported:
    """Of the exported folder: what its processor makes of the samples, logits by what was merged into, answers.

    ``without_lora``: logits of the exported weights without the adapter; None where there is none, or no room to try.
    """

    ids: list[list[int]]
    same_pixels: list[bool]
    logits: dict[MergeInto, list[Tensor]]
    without_lora: list[Tensor] | None
    answers: list[str]
    llama_cpp: LlamaCppDrift | None


def _exported(
    source: Source,
    folder: Path,
    samples: list[Sample],
    length: int,
    gguf: bool,
    device: torch.device,
    progress: Callable[[int], None],
) -> _Exported:
    # Where torchvision is installed, transformers would take it, and it resizes in another way.
    processor = AutoProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)
    model = _open(source, folder, device)
    inputs = [_inputs(processor, sample) for sample in samples]
    answers = []
    for given in inputs:
        answers.append(_answer(model, processor, given, length))
        progress(1)
    llama_cpp = _llama_cpp(source, model, processor, samples) if gguf else None
    logits = {source.merge.into: logits_of(model, samples)}
    without_lora = None
    # On a card that is too small for the model, a part of it is elsewhere, and its weights can't be exchanged.
    if not any(parameter.is_meta for parameter in model.parameters()):
        if (other := source.merge.other()) is not None:
            _put(model, other, source.dtype)
            logits[other.into] = logits_of(model, samples)
        if source.merge.lora:
            _put(model, source.merge.without_lora(), source.dtype)
            without_lora = logits_of(model, samples)
    return _Exported(
        ids=[given["input_ids"][0].tolist() for given in inputs],
        same_pixels=[_same_pixels(given, sample) for given, sample in zip(inputs, samples, strict=True)],
        logits=logits,
        without_lora=without_lora,
        answers=answers,
        llama_cpp=llama_cpp,
    )


def _llama_cpp(source: Source, model: Any, processor: Any, samples: list[Sample]) -> LlamaCppDrift | None:
    """None where no sample has a picture."""
    images = [open_image(image) for sample in samples for image in sample.record.images]
    if not images:
        return None
    values = torch.cat([sample.pixel_values for sample in samples if sample.pixel_values is not None])
    padded = source.bundle.recipe.data.image_fit == "pad"
    return LlamaCppDrift(
        pixels=picture_difference(images, processor.image_processor, padded),
        projector=gelu_difference(model, values.to(model.device, _tower_dtype(model))),
    )


def dtype_of_check(source: Source, device: torch.device) -> torch.dtype:
    """What the exported weights are computed in: their type, or float32 on a processor without instructions for it."""
    return source.dtype if computes_in(device, source.dtype) else torch.float32


def _open(source: Source, folder: Path, device: torch.device) -> Any:
    """The exported model; on a card that is too small for it, the rest is on the host."""
    place: Any = "auto" if device.type == "cuda" else {"": device}
    dtype = dtype_of_check(source, device)
    return AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype="auto" if dtype == source.dtype else dtype, device_map=place, trust_remote_code=False
    ).eval()


def _inputs(processor: Any, sample: Sample) -> dict[str, Any]:
    """What a chat program would give the exported model for the sample's last question."""
    messages = messages_of(asked(sample.record))
    images = iter(sample.record.images)
    for part in (part for message in messages for part in message["content"]):
        if part["type"] == "image":
            part["image"] = open_image(next(images))
    if max(sum(part["type"] == "image" for part in message["content"]) for message in messages) <= 1:
        made = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return dict(made)
    # Several pictures in a message, each at its place in the text: that is said with text alone.
    text = processor.apply_chat_template(
        as_strings(messages, processor.image_token), add_generation_prompt=True, tokenize=False
    )
    special = not text.startswith(processor.tokenizer.bos_token or "\0")
    shown = [open_image(image) for image in sample.record.images]
    return dict(processor(text=[text], images=shown, add_special_tokens=special, return_tensors="pt"))


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
def _put(model: Any, merge: Merge, dtype: torch.dtype) -> None:
    """Replace the weights in which two merges differ, rounded as an export rounds them."""
    for name, parameter in model.named_parameters():
        if (written := written_name(name)) in merge.layout.quantized:
            parameter.copy_(merge.tensor(written).to(dtype))
