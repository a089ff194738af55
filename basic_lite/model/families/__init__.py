"""The families of vision-language models that can be looked into, one small file each."""

from transformers import PreTrainedConfig

from basic_lite.errors import UserError
from basic_lite.model.families.family import Family
from basic_lite.model.families.gemma3 import GEMMA3
from basic_lite.model.families.idefics3 import IDEFICS3, SMOLVLM
from basic_lite.model.families.internvl import INTERNVL
from basic_lite.model.families.lfm2_vl import LFM2_VL
from basic_lite.model.families.llava import LLAVA
from basic_lite.model.families.llava_next import LLAVA_NEXT
from basic_lite.model.families.llava_onevision import LLAVA_ONEVISION
from basic_lite.model.families.mistral3 import MISTRAL3
from basic_lite.model.families.paligemma import PALIGEMMA
from basic_lite.model.families.pixtral import PIXTRAL
from basic_lite.model.families.qwen2_5_vl import QWEN2_5_VL
from basic_lite.model.families.qwen3_5 import QWEN3_5
from basic_lite.model.families.qwen3_vl import QWEN3_VL

# Pixtral before LLaVA, whose model type it has.
FAMILIES = (
    PIXTRAL,
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    IDEFICS3,
    SMOLVLM,
    INTERNVL,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_5,
    GEMMA3,
    MISTRAL3,
    LFM2_VL,
    PALIGEMMA,
)


def known_family(config: PreTrainedConfig) -> Family | None:
    """The family of a model, if it is one that is known here."""
    return next((one for one in FAMILIES if one.fits(config)), None)


def family_of(config: PreTrainedConfig, name: str) -> Family:
    """The family of a model.

    Args:
        name: folder or hub name, for the message.

    Raises:
        UserError: it is of none that is known here; says what was found in its configuration, and what is missing.
    """
    family = known_family(config)
    if family is not None:
        return family
    found = [
        key for key in ("vision_config", "text_config", "image_token_id") if getattr(config, key, None) is not None
    ]
    if "vision_config" not in found:
        raise UserError(
            f"{name} is a {config.model_type} model without a vision part (no vision_config), so there are no visual "
            "tokens to look at; name a vision-language model"
        )
    known = ", ".join(f"{one.name} ({one.model_type})" for one in FAMILIES)
    raise UserError(
        f"{name} is a {config.model_type} model: its configuration has {', '.join(found)}, but no file in "
        f"basic_lite/model/families says where its decoder, projector and placeholders are. Known are {known}"
    )
