"""A vision-language model of transformers, opened to be looked into: its family, parts and processor."""

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from basic_lite.console import Say
from basic_lite.errors import UserError, enough_memory
from basic_lite.model.checks import require_rows_for_tokens, require_sizes
from basic_lite.model.families import family_of
from basic_lite.model.families.family import Family
from basic_lite.model.frontend import read_config, unreadable
from basic_lite.model.load import pick_dtype, quantization_config, read_checkpoint
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import QuantizationSection, SupervisionSection
from basic_lite.supervision import Supervision, choose_kernels
from basic_lite.tools.written import read_processor

KEY = "MODEL"
MEND = "take --quantization nf4, --dtype bfloat16, or --device cpu"


@dataclass(frozen=True)
class OpenModel:
    """A model with its processor, in evaluation mode on one device."""

    name: str
    family: Family
    parts: Parts
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.parts.device

    def supervision(self, say: Say) -> Supervision:
        """BASIC as published: v̂ of the first half of the layers, h² weights."""
        operations, _ = choose_kernels("auto", self.device, say)
        # Markers of tiles and rows are no words, and come with some pictures and not with others.
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return Supervision(
            self.parts,
            SupervisionSection(token_weights=1.0),  # a number: attention is read apart, where it can be
            vocabulary_ids=self._word_ids(),
            operations=operations,
            special_ids=special,
        )

    def _word_ids(self) -> Tensor:
        """Ids that some token has, without placeholders: nobody has trained their rows of E."""
        config = self.parts.model.config
        placeholders = {getattr(config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
        rows = self.parts.embeddings.weight.shape[0]
        return torch.tensor(sorted({i for i in self.tokenizer.get_vocab().values() if i < rows} - placeholders))


def read_family(name: str) -> tuple[PreTrainedConfig, Family]:
    """The configuration of a model, and its family; no weight is read.

    Raises:
        UserError: there is none, or it is of no family that is known.
    """
    config = read_config(name, KEY)
    family = family_of(config, name)
    require_sizes(config.get_text_config(), name, KEY)
    return config, family


def planned_parts(config: PreTrainedConfig, family: Family, name: str) -> Parts:
    """The parts of a model that has no weights.

    Raises:
        UserError: no model can be made of its configuration.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:  # sizes and names of a configuration may fit in no way
        raise unreadable(name, KEY, error, what="configuration") from error
    return family.parts(model)


def open_model(name: str, family: Family, device: torch.device, dtype: str, quantization: str) -> OpenModel:
    """Load a model.

    Raises:
        UserError: its files can't be read, or there is too little memory.
    """
    processor = read_processor(name, family)
    chosen = pick_dtype(dtype, device)
    mode = QuantizationSection.model_validate({"mode": quantization})
    skip = [family.vision_tower, family.projector, "lm_head"]
    options: dict[str, Any] = {"dtype": chosen, "device_map": {"": device}, "use_safetensors": True}
    if quantization != "none":
        options["quantization_config"] = quantization_config(mode, chosen, device, skip)
    with enough_memory(MEND, f"in loading {name}"):
        model = read_checkpoint(AutoModelForImageTextToText, name, KEY, **options)
    model.requires_grad_(False).eval()
    _require_whole_ends(model, family)
    parts = family.parts(model)
    require_rows_for_tokens(processor.tokenizer, parts.embeddings.weight.shape[0], name, KEY, added=False)
    return OpenModel(name, family, parts, processor)


def _require_whole_ends(model: Any, family: Family) -> None:
    """See that only the LLM's layers are in 4 bit: names in a list of what to leave alone may match nothing."""
    inside = f"{family.language_model}."
    for place, module in model.named_modules():
        if isinstance(module, Linear4bit) and not place.startswith(inside):
            raise UserError(
                f"{place} of {type(model).__name__} came out in 4 bit, and only the LLM's layers may: v would be "
                "another one; leave --quantization out"
            )
