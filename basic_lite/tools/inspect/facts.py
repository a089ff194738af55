"""What a model is made of, and whether basic-lite could train it with BASIC."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from basic_lite.console import command_line
from basic_lite.errors import UserError
from basic_lite.model.families.family import Family
from basic_lite.model.frontend import llava_config_of, load_image_processor
from basic_lite.model.parts import Parts

_SOFTMAX = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Facts:
    """The first table of the report."""

    name: str
    family: str
    layers: int  # L
    width: int  # D
    words: int  # rows of E
    language_model: str  # path and class
    vision_tower: str
    vision_width: int
    projector: str
    projector_parameters: int
    tokens: str  # visual tokens of a picture, by the configuration
    softmax_layers: int  # whose attention can be read, by the configuration
    notes: tuple[str, ...]
    trained_with: str  # how basic-lite trains it; empty: not at all
    not_trained: str  # why it can't; else empty

    @property
    def training(self) -> str:
        """In words."""
        return f"yes: {self.trained_with}" if self.trained_with else f"no: {self.not_trained}"


def facts_of(
    name: str, family: Family, parts: Parts, config: PreTrainedConfig, *, trained_with: str, not_trained: str
) -> Facts:
    """Read them from a model, which may have no weights."""
    text, vision = config.get_text_config(), config.vision_config
    kinds = getattr(text, "layer_types", None) or [_SOFTMAX[0]] * len(parts.layers)
    return Facts(
        name=name,
        family=f"{family.name} ({config.model_type})",
        layers=len(parts.layers),
        width=parts.embeddings.weight.shape[1],
        words=parts.embeddings.weight.shape[0],
        language_model=_named(family.language_model, parts.language_model),
        vision_tower=_named(family.vision_tower, parts.vision_tower),
        vision_width=vision.hidden_size,
        projector=_named(family.projector, parts.projector),
        projector_parameters=sum(parameter.numel() for parameter in parts.projector.parameters()),
        tokens=family.tokens(config),
        softmax_layers=sum(kind in _SOFTMAX for kind in kinds[: len(parts.layers)]),
        notes=family.notes,
        trained_with=trained_with,
        not_trained=not_trained,
    )


def _named(place: str, module: Any) -> str:
    return f"{place} ({type(module).__name__})"


def training_of(name: str, family: Family) -> tuple[str, str]:
    """How basic-lite trains a model of transformers, or why it can't; the other one is empty."""
    if family.not_trained:
        return "", family.not_trained
    try:
        llava_config_of(name)
        load_image_processor(name, "model.base")
    except UserError as error:
        return "", str(error)
    return command_line(["basic-lite", "train", "RECIPE", f"model.base={name}"]), ""
