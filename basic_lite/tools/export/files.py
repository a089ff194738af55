"""The small files of an exported folder: configurations, tokenizer, processor, chat template.

They are written so that transformers 4 and 5 and vLLM read them alike. Where `save_pretrained` of one version
writes what another can't read, the file is made here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from basic_lite.data.chat import ChatFormat
from basic_lite.model.device import dtype_name
from basic_lite.model.frontend import Frontend, input_side, resampling
from basic_lite.recipe.schema import ImageFit
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS
from basic_lite.tools.export.template import chat_template
from basic_lite.training.files import write_json
from basic_lite.whole_file import write_whole

# What a configuration says of how it was made or is run, not of the model.
_NOISE = {"_name_or_path", "_from_model_config", "transformers_version", "quantization_config"}
_NOISE |= {"use_cache", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"}
_NOISE |= {"is_encoder_decoder", "id2label", "label2id", "problem_type"}
_VISION_CLASSES = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}


def write_files(folder: Path, frontend: Frontend, chat: ChatFormat, image_fit: ImageFit, dtype: torch.dtype) -> None:
    """Write all but the weights into ``folder``; ``frontend.config`` has the real number of rows."""
    write_json(folder / CONFIG_NAME, model_config(frontend.config, dtype))
    write_json(folder / GENERATION_CONFIG_NAME, generation_config(chat))
    write_tokenizer(folder, chat)
    write_json(folder / "preprocessor_config.json", image_processor_config(frontend, image_fit))
    write_json(folder / "processor_config.json", processor_config(frontend, chat))
    write_whole(folder / "chat_template.jinja", chat_template(chat))


def model_config(config: LlavaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json``, with what programs other than transformers 5 look for."""
    vision, text = _plain(config.vision_config), _plain(config.text_config)
    vision["architectures"] = [_VISION_CLASSES[config.vision_config.model_type]]
    # vLLM chooses the class of the LLM by this.
    text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type]]
    text |= _rope(config.text_config)
    # The whole model and the LLM inside it must agree; some programs ask the one, some the other.
    text["tie_word_embeddings"] = bool(config.tie_word_embeddings)
    for part in (vision, text):
        part["dtype"] = dtype_name(dtype)
    own = {name: value for name, value in _plain(config).items() if name not in ("vision_config", "text_config")}
    return own | {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": dtype_name(dtype),
        "torch_dtype": dtype_name(dtype),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "image_token_index": int(config.image_token_id),
        "vision_config": vision,
        "text_config": text,
    }


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        name: value for name, value in json.loads(config.to_json_string(use_diff=False)).items() if name not in _NOISE
    }


def _rope(text: PreTrainedConfig) -> dict[str, Any]:
    """transformers 4's names of the rotary embeddings' settings. It doesn't know ``rope_parameters``."""
    settings = dict(getattr(text, "rope_parameters", None) or {})
    local = settings.get("sliding_attention")
    whole = settings.get("full_attention", settings)
    found = {"rope_theta": whole.get("rope_theta")}
    if whole.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in whole.items() if name != "rope_theta"}
    if local is not None:
        found["rope_local_base_freq"] = local.get("rope_theta")
    return {name: value for name, value in found.items() if value is not None}


def generation_config(chat: ChatFormat) -> dict[str, Any]:
    """Greedy answers that end where training ended them."""
    return {
        "bos_token_id": chat.tokenizer.bos_token_id,
        "eos_token_id": chat.stop_token_ids,
        "pad_token_id": chat.tokenizer.pad_token_id,
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
        "suppress_tokens": [chat.image_token_id],
    }


def write_tokenizer(folder: Path, chat: ChatFormat) -> None:
    """The tokenizer's files. Its class is named as all versions of transformers know it."""
    chat.tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    path, rules = folder / "tokenizer_config.json", folder / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only", "chat_template", "processor_class", "name_or_path"):
        settings.pop(name, None)
    if rules.is_file():
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if _adds_to_prompts(chat):
            write_json(rules, json.loads(rules.read_text(encoding="utf-8")) | {"post_processor": None})
            settings = {
                name: value for name, value in settings.items() if name not in ("add_bos_token", "add_eos_token")
            }
    # transformers 4 makes token_type_ids otherwise, which no LLM here takes.
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    if extra := settings.pop("extra_special_tokens", None):
        settings["additional_special_tokens"] = list(extra.values()) if isinstance(extra, dict) else extra
    write_json(path, settings)


def _adds_to_prompts(chat: ChatFormat) -> bool:
    """Whether the tokenizer would put tokens around a prompt that has its start token already, or trained without.

    Processors ask it not to where a prompt begins with ``bos_token``. So this is one that ends texts with a token but
    begins them with none, or begins them with one that it doesn't name.
    """
    tokens = chat.tokens
    if tokens.bos and tokens.bos[0] == tokens.tokenizer.bos_token_id:
        return False
    return list(tokens.tokenizer.encode("a")) != tokens.raw("a")


def image_processor_config(frontend: Frontend, image_fit: ImageFit) -> dict[str, Any]:
    """``preprocessor_config.json`` of a processor that does what ``data.pixels.pixels`` did in training."""
    ours = frontend.image_processor
    side = input_side(ours) or int(frontend.config.vision_config.image_size)
    crop = dict(getattr(ours, "crop_size", None) or {})
    # A picture is square when it is cropped, so a crop of the same size does nothing.
    crops = bool(getattr(ours, "do_center_crop", False)) and crop.get("height", side) != side
    return {
        # CLIP's own ignores do_pad without a word.
        "image_processor_type": "LlavaImageProcessor" if image_fit == "pad" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": bool(getattr(ours, "do_resize", True)),
        "size": {"height": side, "width": side},
        "resample": int(resampling(ours)),
        "do_center_crop": crops,
        "crop_size": crop if crops else {"height": side, "width": side},
        "do_rescale": bool(getattr(ours, "do_rescale", True)),
        "rescale_factor": ours.rescale_factor,
        "do_normalize": bool(getattr(ours, "do_normalize", True)),
        "image_mean": list(ours.image_mean),
        "image_std": list(ours.image_std),
    } | ({"do_pad": True} if image_fit == "pad" else {})


def processor_config(frontend: Frontend, chat: ChatFormat) -> dict[str, Any]:
    """``processor_config.json``: how many image tokens a picture takes, as LLaVA's processor counts them."""
    config = frontend.config
    has_class_token = config.vision_config.model_type.startswith("clip")
    return {
        "processor_class": "LlavaProcessor",
        "image_token": chat.tokens.image_text,
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": int(has_class_token),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
