"""Where things are in a LLaVA model: tower, projector, decoder layers, embeddings, head, image token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from basic_lite.errors import UserError


@dataclass(frozen=True)
class Parts:
    """The named parts of one model. They are references: LoRA is injected in place, so they stay valid."""

    model: Any  # LlavaForConditionalGeneration where it is trained, else its family's class, with the same two levels
    vision_tower: nn.Module
    projector: nn.Module
    language_model: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    embeddings: nn.Module
    lm_head: nn.Module
    image_token_id: int
    # v is read as the input of layer 1, and ṽ_h as that of layer h + 1: some models reorder what the projector gives,
    # or add to what a layer gives. LLaVA does neither.
    layer_inputs: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.embeddings.weight.device
        return device


_CHOOSE = "Choose a Llama-, Mistral-, Gemma-, Phi-3- or Qwen-type LLM"


def require_decoder(language_model: nn.Module, name: str, key: str = "model.llm") -> None:
    """Refuse a language model that is not a plain decoder.

    Args:
        language_model: may be on the meta device.

    Raises:
        UserError: it has no ``layers``, ``norm`` or ``embed_tokens``.
    """
    lacking = [part for part in ("layers", "norm", "embed_tokens") if not hasattr(language_model, part)]
    if lacking:
        raise UserError(
            f"{key}: {name} ({type(language_model).__name__}) has no {', '.join(lacking)}: "
            f"BASIC reads what the layers of a plain decoder hand on. {_CHOOSE}"
        )


def require_linear_layers(language_model: nn.Module, name: str, key: str) -> None:
    """Refuse a language model with matrices outside of linear layers.

    Args:
        language_model: as its class makes it, since a LoRA may put other matrices in; may be on the meta device.

    Raises:
        UserError: names the modules that have them.
    """
    others = (one for one in language_model.modules() if not isinstance(one, (nn.Linear, nn.Embedding)))
    odd = [type(one).__name__ for one in others if any(weight.ndim > 1 for weight in one.parameters(recurse=False))]
    if odd:
        raise UserError(
            f"{key}: {name} ({type(language_model).__name__}) has weights outside of linear layers "
            f"({', '.join(dict.fromkeys(odd))}), as mixtures of experts and linear attention have: they can't be held "
            f"in 4 bit here, and LoRA trains none of them. {_CHOOSE} without these"
        )


def find_parts(model: LlavaForConditionalGeneration) -> Parts:
    """Name the parts of ``model``.

    Raises:
        UserError: the LLM is not a plain decoder (no ``layers``, ``norm`` or ``embed_tokens``).
    """
    language_model = model.model.language_model
    require_decoder(language_model, type(language_model).__name__)
    return Parts(
        model=model,
        vision_tower=model.model.vision_tower,
        projector=model.model.multi_modal_projector,
        language_model=language_model,
        layers=language_model.layers,
        norm=language_model.norm,
        embeddings=language_model.embed_tokens,
        lm_head=model.lm_head,
        image_token_id=model.config.image_token_id,
    )
