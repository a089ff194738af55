"""What the weights of an exported model are: base, projector and LoRA, put together tensor by tensor.

The adapter was trained on NF4 weights. Merged into those, dequantised, it gives what was trained; merged into the
original 16-bit weights it gives something close to that. `MergeInto` says which.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bitsandbytes.functional as bnb
import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from basic_lite.errors import UserError
from basic_lite.model.frontend import table_rows
from basic_lite.model.load import pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.tools.export.tensors import Checkpoint, Planned, read_tensor, tensor_names, tensor_shape
from basic_lite.training.bundle import PEFT_PREFIX, tensors_of
from basic_lite.training.bundle_files import ADAPTER_WEIGHTS, Bundle
from basic_lite.training.places import PROJECTOR

MergeInto = Literal["original", "quantized"]
MERGED_INTO: dict[MergeInto, str] = {
    "original": "the original weights",
    "quantized": "the NF4 weights that it was trained on, dequantised",
}

# The parts' names in a llava-hf checkpoint, and in the classes of transformers 5. vLLM and transformers 4 know the
# first ones only.
TEXT, VISION, PROJECTION, HEAD = (
    "language_model.model.",
    "vision_tower.vision_model.",
    "multi_modal_projector.",
    "language_model.lm_head.weight",
)
_OUR_TEXT = "model.language_model."
_WRITTEN = {_OUR_TEXT: TEXT, "model.vision_tower.": VISION, "model.multi_modal_projector.": PROJECTION}
# Where a checkpoint may have them: a llava-hf one of either naming, or that of an LLM or a vision encoder alone.
_SOURCES = {
    TEXT: (TEXT, _OUR_TEXT, "model.", ""),
    VISION: (VISION, "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.", "vision_model.", ""),
}
_HEADS = (HEAD, "lm_head.weight")


def written_name(name: str) -> str:
    """The name in a llava-hf checkpoint of a tensor that transformers 5 calls ``name``.

    Raises:
        ValueError: LLaVA has no such part.
    """
    if name == "lm_head.weight":
        return HEAD
    for ours, written in _WRITTEN.items():
        if name.startswith(ours):
            # 5.17 still has this level in its vision classes.
            return written + name.removeprefix(ours).removeprefix("vision_model.")
    raise ValueError(f"{name} is in no part of LLaVA")


@dataclass(frozen=True)
class _Layout:
    """Shapes by written name, and the names of the weights that training held in NF4."""

    shapes: dict[str, tuple[int, ...]]
    quantized: frozenset[str]


def _layout(config: LlavaConfig) -> _Layout:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    tied = bool(config.tie_word_embeddings)
    shapes = {
        written_name(name): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    linears = {name for name, module in model.model.language_model.named_modules() if isinstance(module, nn.Linear)}
    return _Layout(shapes, frozenset(f"{TEXT}{name}.weight" for name in linears))


class Merge:
    """The exported tensors of one bundle by name, each made when it is asked for.

    Args:
        config: configuration with the real number of rows (``vocab_size``).
        into: what LoRA is added to.
        device: where the products are computed.

    Raises:
        UserError: the base lacks a tensor, or has one of another shape; ``quantized`` without quantised weights.
    """

    def __init__(self, bundle: Bundle, config: LlavaConfig, into: MergeInto, device: torch.device) -> None:
        recipe = bundle.recipe
        self.was_quantized = recipe.quantization.mode != "none"
        if into == "quantized" and not self.was_quantized:
            raise UserError("--merge-into quantized: this run had quantization.mode none; use --merge-into original")
        self.into: MergeInto = into
        self.device = device
        self.double = recipe.quantization.double
        self.trained_dtype = trained_dtype(bundle)
        self.layout = _layout(config)
        self.rows = config.text_config.vocab_size
        self.projector = tensors_of(bundle, PROJECTOR)
        self.scale = recipe.lora.alpha / recipe.lora.rank
        self.adapter = bundle.folder / ADAPTER_WEIGHTS
        self.lora = _lora(self.adapter, self.layout) if bundle.has_adapter else {}
        self.checkpoints = _checkpoints(recipe)
        self.sources = self._find_sources()
        if config.tie_word_embeddings:
            self._require_tied()

    def other(self) -> "Merge | None":
        """The same merge into the other base; None where training quantised nothing, so that both are one."""
        if not self.was_quantized:
            return None
        other = copy.copy(self)
        other.into = "original" if self.into == "quantized" else "quantized"
        return other

    def without_lora(self) -> "Merge":
        """The same base without the adapter."""
        bare = copy.copy(self)
        bare.lora = {}
        return bare

    def _find_sources(self) -> dict[str, tuple[Checkpoint, str]]:
        sources: dict[str, tuple[Checkpoint, str]] = {}
        for name in self.layout.shapes:
            if name.startswith(PROJECTION):
                continue
            checkpoint = self.checkpoints[VISION if name.startswith(VISION) else TEXT]
            found = checkpoint.find(_candidates(name))
            if found is None:
                raise UserError(
                    f"{checkpoint.key}: {checkpoint.name} has no tensor for {name}: it is another checkpoint than the "
                    "one that was trained, or the download is incomplete; fetch it again"
                )
            shape, expected = checkpoint.shape(found), self.layout.shapes[name]
            # A single number has no rows.
            grows = bool(shape) and shape[1:] == expected[1:] and shape[0] < expected[0] == self.rows
            if shape != expected and not grows:
                raise UserError(
                    f"{checkpoint.key}: {found} of {checkpoint.name} has shape {list(shape)}, trained was "
                    f"{list(expected)}: it is another checkpoint; name the one of the run"
                )
            sources[name] = checkpoint, found
        return sources

    def _require_tied(self) -> None:
        """See that a head in the checkpoint is the table of words that its configuration says it is."""
        checkpoint, table = self.sources[f"{TEXT}embed_tokens.weight"]
        head = checkpoint.find(_HEADS)
        if head is not None and not torch.equal(checkpoint.read(head), checkpoint.read(table)):
            raise UserError(
                f"{checkpoint.key}: {checkpoint.name} has a head of its own, but its config.json says "
                "tie_word_embeddings; set that to false there, and train again"
            )

    @property
    def base_dtype(self) -> torch.dtype:
        """The type of the LLM's table of words in its checkpoint."""
        checkpoint, name = self.sources[f"{TEXT}embed_tokens.weight"]
        return checkpoint.dtype(name)

    def plan(self, dtype: torch.dtype) -> list[Planned]:
        """What is written: all in ``dtype`` but the projector, which was trained in float32 and stays so."""
        return [
            Planned(name, shape, torch.float32 if name.startswith(PROJECTION) else dtype)
            for name, shape in self.layout.shapes.items()
        ]

    def tensor(self, name: str) -> Tensor:
        """The tensor of this written name, in float32 wherever something was computed."""
        if name.startswith(PROJECTION):
            return self.projector[name.removeprefix(PROJECTION)]
        checkpoint, source = self.sources[name]
        found = checkpoint.read(source)
        if found.shape != self.layout.shapes[name]:
            found = _grown(found.to(self.trained_dtype), self.rows)
        return self._merged(name, found)

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        quantized = self.into == "quantized" and name in self.layout.quantized
        if not quantized and name not in self.lora:
            return weight
        weight = weight.to(self.device)
        if quantized:
            weight = dequantised(weight.to(self.trained_dtype), double=self.double)
        weight = weight.float()
        if name in self.lora:
            down, up = (read_tensor(self.adapter, factor).to(self.device).float() for factor in self.lora[name])
            weight = weight.addmm(up, down, alpha=self.scale)
        return weight


def dequantised(weight: Tensor, *, double: bool) -> Tensor:
    """What NF4 holds of a weight, as bitsandbytes' ``Linear4bit`` quantises it when a model is loaded.

    Args:
        weight: [N, K] in the type it is loaded in.
        double: statistics in 8 bit (``quantization.double``).
    """
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=double, quant_type="nf4")
    return bnb.dequantize_4bit(packed, state)


def trained_dtype(bundle: Bundle) -> torch.dtype:
    """The type that the frozen weights had in training, as the manifest says it."""
    stated = str(bundle.manifest.get("machine", {}).get("dtype", bundle.recipe.model.dtype))
    return pick_dtype(stated.removeprefix("torch."), torch.device("cpu"))


def grow_config(config: LlavaConfig) -> None:
    """Set the number of rows that the tables have with one for the image token."""
    config.text_config.vocab_size = table_rows(config.text_config.vocab_size, config.image_token_id)


def _grown(table: Tensor, rows: int) -> Tensor:
    """A table with as many rows as in training; new ones hold the mean of the others."""
    mean = table.float().mean(dim=0).to(table.dtype)
    return torch.cat([table, mean.expand(rows - table.shape[0], -1)])


def _candidates(name: str) -> list[str]:
    if name == HEAD:
        return list(_HEADS)
    part = VISION if name.startswith(VISION) else TEXT
    return [prefix + name.removeprefix(part) for prefix in _SOURCES[part]]


def _checkpoints(recipe: Recipe) -> dict[str, Checkpoint]:
    """The base checkpoints of text and vision; one and the same for ``model.base``."""
    section = recipe.model
    if section.base is not None:
        base = Checkpoint(section.base, "model.base")
        return {TEXT: base, VISION: base}
    assert section.llm is not None and section.vision is not None
    return {TEXT: Checkpoint(section.llm, "model.llm"), VISION: Checkpoint(section.vision, "model.vision")}


def _lora(adapter: Path, layout: _Layout) -> dict[str, tuple[str, str]]:
    """Written name of a weight → the names of its factors, A [r, K] and B [N, r], which are read when they are used."""
    prefix, down, up = PEFT_PREFIX + _OUR_TEXT, ".lora_A.weight", ".lora_B.weight"
    found: dict[str, tuple[str, str]] = {}
    for a in tensor_names(adapter):
        if not a.endswith(down):
            continue
        b = a.removesuffix(down) + up
        name = TEXT + a.removeprefix(prefix).removesuffix(down) + ".weight"
        shape = (tensor_shape(adapter, b)[0], tensor_shape(adapter, a)[1])
        if shape != (expected := layout.shapes.get(name, ())):
            raise UserError(
                f"{adapter}: the adapter was trained on weights of shape {list(shape)}, but here {name} has "
                f"{list(expected)}: it is another LLM; name the one of the run"
            )
        found[name] = a, b
    return found
