"""What is read of a model before its weights: configurations, tokenizer, image processor. A dry run needs no more."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlavaConfig, PreTrainedConfig, PreTrainedTokenizerBase

# Not from transformers itself: 5.17 hands out a placeholder there where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from basic_lite.errors import UserError, all_at_once, reason_of
from basic_lite.model.checks import (
    add_image_token,
    require_pictures_of,
    require_plain_logits,
    require_rows_for_tokens,
    require_sizes,
    require_unquantized,
    require_usable_processor,
    without_dropout,
)
from basic_lite.model.growth import require_bounded_growth
from basic_lite.model.hub import file_of, hub_is_away, local_only, offline_setting
from basic_lite.model.kinds import kind_in_name
from basic_lite.model.known_names import nearest_known
from basic_lite.model.parts import require_decoder, require_linear_layers
from basic_lite.recipe.schema import ModelSection

# model type → attribute that holds the vision part of its configuration
VISION_TYPES = {
    "clip": "vision_config",
    "siglip": "vision_config",
    "clip_vision_model": None,
    "siglip_vision_model": None,
}

# Embedding tables are padded to a multiple of this when the image token has no row, as llava-hf's are.
TABLE_MULTIPLE = 64
ADAPTER_CONFIG_NAME = "adapter_config.json"
# How transformers says that a class has no such attention.
_SDPA = "torch.nn.functional.scaled_dot_product_attention"

# What a key wants that names a model, said of one that is something else.
_WANTED = {
    "model.vision": "not CLIP or SigLIP; name a vision encoder such as openai/clip-vit-large-patch14-336",
    "model.llm": "which already has a vision part or is no language model; name a text-only causal LLM (a LLaVA "
    "checkpoint belongs in model.base)",
    "model.base": "not LLaVA in the llava-hf layout (model_type llava); for an LLM alone use model.llm together with "
    "model.vision",
}


@dataclass(frozen=True)
class Frontend:
    """Configuration, tokenizer and image processor of one model; ``config.image_token_id`` is the tokenizer's."""

    config: LlavaConfig
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    tokens_per_image: int

    @property
    def image_token_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def layer_count(self) -> int:
        """L, decoder layers of the LLM."""
        return int(self.config.text_config.num_hidden_layers)


def load_frontend(section: ModelSection) -> Frontend:
    """Read all but the weights of the model a recipe names.

    Raises:
        UserError: a checkpoint is missing, of a wrong kind, its tokenizer lacks the image token or has more tokens than
            the model, or its image processor makes pictures of another size.
    """
    if section.base is not None:
        key, name = "model.base", section.base
        config = llava_config_of(name)
        _require_llm(config, name, key)
        tokenizer = load_tokenizer(name, key)
        _check_image_token(tokenizer, config, section)
        eye_key, eye = key, name
    else:
        assert section.vision is not None and section.llm is not None
        key, name = "model.llm", section.llm
        config = composed_config(section)
        _require_llm(config, name, key)
        tokenizer = load_tokenizer(name, key)
        config.image_token_id = add_image_token(tokenizer, section.image_token, name)
        eye_key, eye = "model.vision", section.vision
    images = load_image_processor(eye, eye_key)
    require_pictures_of(config.vision_config.image_size, images, eye, eye_key)
    rows = table_rows(config.text_config.vocab_size, config.image_token_id)
    require_rows_for_tokens(tokenizer, rows, name, key)
    count = tokens_per_image(config.vision_config, config.vision_feature_select_strategy)
    return Frontend(config, tokenizer, images, count)


def _require_llm(config: LlavaConfig, name: str, key: str) -> None:
    """Refuse an LLM that by its configuration can't be made, or trained on (see ``parts``)."""
    try:
        with torch.device("meta"):
            language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
    except Exception as error:  # sizes and names of a configuration may fit in no way
        raise unreadable(name, key, error, what="configuration") from error
    require_decoder(language_model, name, key)
    require_linear_layers(language_model, name, key)


def unreadable(name: str, key: str, error: Exception, what: str = "checkpoint") -> UserError:
    """The error for a checkpoint's file that a library refused: ``key`` names the checkpoint, and ``what`` was read."""
    folder = Path(name)
    if not os.path.isdir(folder) and (folder.is_absolute() or len(folder.parts) != 2):
        return UserError(
            f"{key}: there is no folder {name}; give {key} a folder with a transformers checkpoint, or a hub name"
            + (f"; a shipped recipe has {near}" if (near := nearest_known(name)) else "")
        )
    fetch = f"fetch it first: hf download {name}"
    if what == "configuration":  # of a model that doesn't fit, the rest would be fetched for nothing
        fetch = f"fetch its configuration first, which shows whether it fits: hf download {name} config.json"
    reason = reason_of(error)
    if "trust_remote_code" in str(error):
        reason = "it comes with a program of its own, and those aren't run here"
    if _SDPA in str(error):
        return UserError(
            f"{key}: {name} can't have model.attention=sdpa: transformers has no such attention for it. Set "
            "model.attention=eager, or choose another LLM"
        )
    where, hint = "the folder holds no readable one", ""
    if not os.path.isdir(folder):
        where = "no such folder, and not found on the hub"
        hint = f"\n  is the name right? A shipped recipe has {near}" if (near := nearest_known(name)) else ""
        if hub_is_away():
            where = "no such folder, and the hub can’t be reached"
            off = offline_setting()
            again = f"unset {off}, which forbids the hub" if off else "check the connection or the proxy (HTTPS_PROXY)"
            return UserError(
                f"{key}: can't read the {what} {name} ({where}): {reason}\n"
                f"  fix: {again}, and give the same command again\n"
                f"  or download the whole model elsewhere (config.json alone shows whether it fits, `train` needs all "
                f"of it) and give {key} its folder: hf download {name} --local-dir {folder.name}{hint}"
            )
    return UserError(
        f"{key}: can't read the {what} {name} ({where}): {reason}\n"
        f"  fix: give {key} a folder with a transformers checkpoint, or {fetch}{hint}"
    )


def require_no_adapter(name: str, key: str) -> None:
    """Refuse a checkpoint with PEFT's adapter in it: transformers adds that to the weights and says nothing.

    Where only the adapter is there, it would even open the model that the adapter names.

    Args:
        name: folder or hub name.
        key: recipe key or argument that names it.

    Raises:
        UserError: there is one.
    """
    try:
        found = file_of(name, ADAPTER_CONFIG_NAME)
    except (OSError, ValueError):  # no folder, and no name on the hub: whoever reads the model says so
        return
    if found is not None:
        raise UserError(
            f"{key}: {name} has an adapter in it ({ADAPTER_CONFIG_NAME}), which transformers would add to the weights "
            "without a word, and which an export would lack; merge it into the model first (merge_and_unload in PEFT), "
            "move its files elsewhere, or take the model that it was trained on"
        )


def read_config(name: str, key: str) -> PreTrainedConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        UserError: there is none, or an adapter lies beside it.
    """
    require_no_adapter(name, key)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local_only(name))
    except Exception as error:  # a config.json may be wrong in any way
        if key in _WANTED and (kind := kind_in_name(name)) is not None:
            raise wrong_kind(name, key, kind, "by its name; its configuration can't be read here") from error
        raise unreadable(name, key, error, what="configuration") from error


def wrong_kind(name: str, key: str, kind: str, remark: str = "") -> UserError:
    """The error for a checkpoint that isn't of the kind its key wants.

    Args:
        kind: of the checkpoint, with an article.
        remark: how it is known.
    """
    return UserError(f"{key}: {name} is {kind} checkpoint{f' ({remark})' if remark else ''}, {_WANTED[key]}")


def _vision_config_of(name: str) -> PreTrainedConfig:
    """The vision part's configuration of a CLIP or SigLIP checkpoint."""
    config = read_config(name, "model.vision")
    if config.model_type not in VISION_TYPES:
        raise wrong_kind(name, "model.vision", f"a {config.model_type}")
    require_unquantized(config, name, "model.vision")
    inner = VISION_TYPES[config.model_type]
    vision = config if inner is None else getattr(config, inner)
    require_sizes(vision, name, "model.vision")
    if vision.patch_size > vision.image_size:
        raise UserError(
            f"model.vision: the configuration of {name} has patches of {vision.patch_size} pixels in pictures of "
            f"{vision.image_size}; fetch its config.json again"
        )
    return vision


def llm_config_of(name: str) -> PreTrainedConfig:
    """The configuration of a causal LLM.

    Raises:
        UserError: it can't be read, is of another kind, is quantised, or changes its logits.
    """
    config = read_config(name, "model.llm")
    if config.model_type in VISION_TYPES or getattr(config, "vision_config", None) is not None:
        raise wrong_kind(name, "model.llm", f"a {config.model_type}")
    require_unquantized(config, name, "model.llm")
    require_sizes(config, name, "model.llm")
    require_plain_logits(config, name)
    without_dropout(config)
    return config


def llava_config_of(name: str) -> LlavaConfig:
    """The configuration of a llava-hf checkpoint.

    Raises:
        UserError: as in ``llm_config_of``, or it feeds several vision layers to its projector.
    """
    config = read_config(name, "model.base")
    if config.model_type != "llava":
        raise wrong_kind(name, "model.base", f"a {config.model_type}")
    require_unquantized(config, name, "model.base")
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(f"model.base: {name} feeds several vision layers to its projector; one layer is supported")
    for part in (config.text_config, config.vision_config):
        require_sizes(part, name, "model.base")
    require_plain_logits(config.text_config, name, "model.base")
    without_dropout(config.text_config)
    return config


def tokens_per_image(vision: PreTrainedConfig, select: str) -> int:
    """N, visual tokens an image: patches and the class token, where there is one; `default` leaves the first out."""
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + int(_has_class_token(vision)) - int(select == "default")


def _has_class_token(vision: PreTrainedConfig) -> bool:
    return vision.model_type.startswith("clip")


def composed_config(section: ModelSection) -> LlavaConfig:
    """The LLaVA configuration that ``model.vision`` and ``model.llm`` make together (no weights are read).

    Raises:
        UserError: one of them can't be read or is of a wrong kind, or both; or they don't fit together.
    """
    assert section.vision is not None and section.llm is not None
    vision, llm = all_at_once(partial(_vision_config_of, section.vision), partial(llm_config_of, section.llm))
    return put_together(section, vision, llm)


def put_together(section: ModelSection, vision: PreTrainedConfig, text: PreTrainedConfig) -> LlavaConfig:
    """The LLaVA configuration of two parts' configurations.

    Raises:
        UserError: the vision part has no such layer as ``model.vision_feature_layer``.
    """
    count = vision.num_hidden_layers
    if not -count - 1 <= section.vision_feature_layer <= count or section.vision_feature_layer == 0:
        raise UserError(
            f"model.vision_feature_layer is {section.vision_feature_layer}, but {section.vision} has {count} layers, "
            f"from 1 to {count}; -2 is the last but one, {-count - 1} what goes into the first"
        )
    # `default` drops the first token, which SigLIP doesn't have.
    select = section.vision_feature_select if _has_class_token(vision) else "full"
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,  # the real id is set once the tokenizer has one
        projector_hidden_act="gelu",
        vision_feature_layer=section.vision_feature_layer,
        vision_feature_select_strategy=select,
        image_seq_length=tokens_per_image(vision, select),
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def table_rows(rows: int, image_token_id: int) -> int:
    """Rows of the embedding table once the image token has one."""
    return rows if image_token_id < rows else -(-(image_token_id + 1) // TABLE_MULTIPLE) * TABLE_MULTIPLE


def load_tokenizer(name: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a padding token.

    Raises:
        UserError: there is none, it makes long texts of short ones, or no token can pad.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local_only(name))
    except Exception as error:  # a tokenizer file may be wrong in any way
        raise unreadable(name, key, error, what="tokenizer") from error
    require_bounded_growth(tokenizer, name, key)
    if tokenizer.pad_token_id is None:
        # Padding is masked and never supervised, so any token does; unk keeps eos meaningful in listings.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{key}: the tokenizer of {name} has no padding, unknown or end token, so batches can't be padded; "
            "name one in its tokenizer_config.json (pad_token)"
        )
    return tokenizer


def _check_image_token(tokenizer: PreTrainedTokenizerBase, config: LlavaConfig, section: ModelSection) -> None:
    """See that tokenizer and configuration of an existing checkpoint mean the same image token."""
    vocabulary = tokenizer.get_vocab()
    if section.image_token not in vocabulary:
        known = config.image_token_id < len(tokenizer)
        named = tokenizer.convert_ids_to_tokens(config.image_token_id) if known else None
        hint = f"; its image token is {named!r}: set model.image_token" if named else ""
        raise UserError(
            f"the tokenizer of {section.base} has no token {section.image_token!r}, "
            "so images would have no place in the text"
            f"{hint or '; take the checkpoint’s own tokenizer, or compose model.vision with model.llm'}"
        )
    token_id = vocabulary[section.image_token]
    if token_id != config.image_token_id:
        raise UserError(
            f"model.base: in {section.base} {section.image_token!r} has id {token_id} for the tokenizer and "
            f"{config.image_token_id} for the model's configuration; take tokenizer and weights of one checkpoint"
        )


def load_image_processor(name: str | Path, key: str = "model.vision") -> Any:
    """The image processor of a checkpoint, always its PIL version (torchvision resizes in another way).

    Args:
        name: folder or hub name.
        key: recipe key that names it.

    Raises:
        UserError: there is none at that place, or it has no PIL version.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(
            str(name), backend="pil", trust_remote_code=False, local_files_only=local_only(name)
        )
    except Exception as error:  # its file may be wrong in any way
        raise unreadable(str(name), key, error, what="image processor (preprocessor_config.json)") from error
    if getattr(processor, "backend", "pil") != "pil":
        raise UserError(
            f"{key}: {type(processor).__name__} of {name} has no PIL version, and torchvision is not used here; "
            f"choose a CLIP or SigLIP encoder in {key}"
        )
    require_usable_processor(processor, str(name), key)
    # One number for each channel, as others than transformers want it.
    for one in ("image_mean", "image_std"):
        setattr(processor, one, _of_channels(getattr(processor, one, None)))
    return processor


def _of_channels(value: Any) -> list[float]:
    """Three numbers; one is that of each channel, and without any, where nothing is normalised, they are grey."""
    return list(value) if isinstance(value, list | tuple) else [0.5 if value is None else float(value)] * 3


def mean_colour(processor: Any) -> tuple[int, int, int]:
    """The processor's mean as 8-bit RGB: padding of this colour is about 0 after normalisation."""
    r, g, b = (int(value * 255) for value in _of_channels(getattr(processor, "image_mean", None)))
    return r, g, b


def input_side(processor: Any) -> int | None:
    """Side in pixels of the square that the processor resizes to; None where it doesn't say."""
    size = dict(getattr(processor, "size", None) or {})
    return size.get("shortest_edge") or size.get("height")


def resampling(processor: Any) -> Image.Resampling:
    """The filter that the processor resizes with; bicubic where it doesn't say."""
    chosen = getattr(processor, "resample", None)
    return Image.Resampling.BICUBIC if chosen is None else Image.Resampling(chosen)
