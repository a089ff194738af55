"""Configurations of the shipped recipes' models, which travel with the package: an estimate needs no network.

They hold what decides memory and time. Each says where it is from; most were written down without the file at hand, and
what differs in the real one shows when a run reads it. A tokenizer stands in for the real one: it has as
many tokens, and none of its words.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from basic_lite.model.frontend import Frontend, put_together, tokens_per_image
from basic_lite.model.known_names import known_models
from basic_lite.recipe.schema import ModelSection

SPECIAL = ("<unk>", "<s>", "</s>")


def known_frontend(section: ModelSection) -> Frontend | None:
    """What an estimate reads of the models that a recipe names; None: they aren't known, or a folder has the name."""
    known = known_models()
    names = [str(name) for name in ([section.base] if section.base is not None else [section.llm, section.vision])]
    if any(name not in known or Path(name).exists() for name in names):
        return None
    main = known[names[0]]
    if section.base is not None:
        config: Any = _config(main)
        token_id = config.image_token_id
    else:
        config = put_together(section, _config(known[names[1]]), _config(main))
        token_id = main["tokens"]
    tokenizer = _stand_in(max(main["tokens"], token_id + 1), section.image_token, token_id)
    config.image_token_id = token_id
    return Frontend(
        config, tokenizer, None, tokens_per_image(config.vision_config, config.vision_feature_select_strategy)
    )


def _config(entry: dict[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(**entry["config"])


def _stand_in(count: int, image_token: str, image_token_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many tokens, the image token among them."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), count))]
    words[image_token_id] = image_token
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[0]))
    unk, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=unk,
        additional_special_tokens=[image_token],
    )
