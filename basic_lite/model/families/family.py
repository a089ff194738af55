"""What differs between vision-language models of transformers, as far as BASIC's quantities need it."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel

from basic_lite.errors import UserError
from basic_lite.model.families.views import Views
from basic_lite.model.parts import Parts


@dataclass(frozen=True)
class Family:
    """Where the parts of one kind of model are. Paths start at the model with its head.

    v is read as the input of the first decoder layer and ṽ_h as the input of layer h + 1, so nothing is said here about
    how features get to their placeholders.
    """

    name: str  # as people call it
    model_type: str  # of its configuration
    tokens: Callable[[Any], str]  # visual tokens of a picture in words, from the configuration
    views: Views  # where the visual tokens of a batch lie
    vision_tower: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    language_model: str = "model.language_model"
    norm: str = "norm"  # the last one, in the language model
    separator: str | None = None  # a learned row that fills placeholders between lines of patches
    vision_type: str | None = None  # model type of the vision tower, where two families share ``model_type``
    processor: Any = AutoProcessor  # the class whose ``from_pretrained`` makes inputs of texts and pictures
    mark: str = ""  # what a text has where a picture goes; empty: the processor's ``image_token``
    prefix: bool = False  # the prompt's tokens attend to one another both ways; only the answer's rows are causal
    notes: tuple[str, ...] = ()  # what the figures mean here
    not_trained: str = ""  # why basic-lite can't train it; empty: it can

    def fits(self, config: PreTrainedConfig) -> bool:
        """Whether a configuration is of this family."""
        vision = getattr(getattr(config, "vision_config", None), "model_type", None)
        return config.model_type == self.model_type and self.vision_type in (None, vision)

    def parts(self, model: PreTrainedModel) -> Parts:
        """The named parts of ``model``.

        Raises:
            UserError: it lacks one, so it isn't built as this family was when its file was written.
        """
        decoder = self.language_model
        places = [self.vision_tower, self.projector, decoder, f"{decoder}.layers", f"{decoder}.{self.norm}"]
        found = [_at(model, place) for place in places]
        if missing := [place for place, part in zip(places, found, strict=True) if part is None]:
            raise UserError(
                f"{type(model).__name__} ({self.model_type}) has no {', '.join(missing)}: this version of transformers "
                f"builds {self.name} otherwise than basic_lite/model/families knows; correct its file there"
            )
        vision, projector, language, layers, norm = found
        return Parts(
            model=model,
            vision_tower=vision,
            projector=projector,
            language_model=language,
            layers=layers,
            norm=norm,
            embeddings=model.get_input_embeddings(),
            lm_head=model.get_output_embeddings(),
            image_token_id=int(model.config.image_token_id),
            layer_inputs=True,
        )

    def separator_row(self, model: nn.Module) -> Tensor | None:
        """The row [D] that fills placeholders between lines of patches; None: every placeholder holds a patch."""
        return None if self.separator is None else attrgetter(self.separator)(model).detach()


def _at(model: nn.Module, place: str) -> Any:
    try:
        return attrgetter(place)(model)
    except AttributeError:
        return None
