"""What a model from outside must have to be trained on: refused by name, before step 0, where it hasn't."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from basic_lite.errors import UserError, reason_of
from basic_lite.outside import is_finite, read_json_file

# Pixels of an encoder's side. The largest that is published has 1,024.
_MOST_PIXELS = 8192
# The most of what a configuration counts; the largest models have a tenth of it.
_MOST = {
    "num_hidden_layers": 1000,
    "hidden_size": 200_000,
    "vocab_size": 10_000_000,
    "image_size": _MOST_PIXELS,
    "patch_size": 1024,
}


def require_usable_processor(processor: Any, name: str, key: str) -> None:
    """Refuse an image processor whose numbers make no pixels.

    Raises:
        UserError: mean or std aren't three finite numbers, a std or scale isn't above 0, or a size is none.
    """
    odd = [one for one in ("image_mean", "image_std") if _odd(processor, one)]
    wrong = [f"{one} is {getattr(processor, one)!r}" for one in odd]
    scale = getattr(processor, "rescale_factor", 1.0)
    if not is_finite(scale) or scale <= 0:
        wrong.append(f"rescale_factor is {scale!r}")
    if processor.do_normalize is not False and None in (processor.image_mean, processor.image_std):
        wrong.append("do_normalize is set without image_mean and image_std")
    if getattr(processor, "do_resize", True) is False:
        wrong.append("do_resize is False")
    if processor.resample is not None and processor.resample not in list(Image.Resampling):
        wrong.append(f"resample is {processor.resample!r}")
    for one in ("size", "crop_size"):
        sides = [side for side in dict(getattr(processor, one, None) or {}).values() if side is not None]
        if any(not isinstance(side, int) or not 1 <= side <= _MOST_PIXELS for side in sides):
            wrong.append(f"{one} is {dict(getattr(processor, one))}")
    if wrong:
        raise UserError(
            f"{key}: the preprocessor_config.json of {name} makes no usable pixels ({'; '.join(wrong)}); take the one "
            "that its authors publish"
        )


def require_pictures_of(side: int, processor: Any, name: str, key: str) -> None:
    """Refuse an image processor whose pictures have another size or form than its encoder takes.

    Args:
        side: the encoder's, in pixels.

    Raises:
        UserError: they have, or it makes none.
    """
    # `data.image_fit` hands over squares. Some processors don't enlarge, so a small one is tried too.
    for given in (side + 1, max(1, side // 2)):
        try:
            shape = list(
                processor(images=[Image.new("RGB", (given, given))], return_tensors="pt")["pixel_values"].shape
            )
        except Exception as error:  # its settings may be wrong in any way
            makes = f"makes no pictures ({reason_of(error)})"
        else:
            if shape == [1, 3, side, side]:
                continue
            makes = f"makes pictures of {shape[-1]} × {shape[-2]} pixels"
            if shape[:-2] != [1, 3]:
                makes = f"cuts pictures into pieces (one becomes {' × '.join(map(str, shape[1:]))} numbers)"
        raise UserError(
            f"{key}: the preprocessor_config.json of {name} {makes}, and its encoder takes {side} × {side}; take the "
            "one that its authors publish, or choose another model"
        )


def _odd(processor: Any, name: str) -> bool:
    value = getattr(processor, name, None)
    if value is None:  # then it isn't used
        return False
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    return len(values) != 3 or any(not is_finite(one) or (name == "image_std" and one <= 0) for one in values)


def read_weight_map(index: Path, name: str, key: str) -> dict[str, str]:
    """Which file of a checkpoint has which weight, as its index says.

    Raises:
        UserError: the index can't be read, or names a file elsewhere.
    """
    try:
        found = read_json_file(index)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {index} can't be read ({error}); fetch {name} again") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(one, str) and _is_name(one) for one in places.values()):
        raise UserError(
            f"{key}: {index} doesn't say which of its own files has which weight (`weight_map`); fetch {name} again"
        )
    return places


def _is_name(text: str) -> bool:
    """Whether a text names a file of the same folder."""
    return text not in ("", ".", "..") and not set(text) & set("/\\\0:")


# What a configuration calls a factor on the logits, and one on the embeddings of tokens.
_LOGIT_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")
_EMBEDDING_SCALE = "embedding_multiplier"


def require_plain_logits(config: PreTrainedConfig, name: str, key: str = "model.llm") -> None:
    """Refuse an LLM that caps or scales its logits, or scales embeddings between their table and its first layer.

    LLaVA's class has neither. E and v lie before such a scale, hidden states behind it, so v̂ couldn't be compared.

    Raises:
        UserError: it does.
    """
    told = f"{key}: {name} ({config.model_type})"
    if cap := getattr(config, "final_logit_softcapping", None):
        raise UserError(
            f"{told} has a soft cap of {cap:g} on its logits, as Gemma 2 has, and LLaVA can't hold one: it would be "
            "trained against other logits than its own. Choose another LLM"
        )
    for one in _LOGIT_SCALES:
        if _scales(config, one):
            raise UserError(
                f"{told} scales its logits ({one} is {getattr(config, one)!r}), as Granite and Cohere do, and LLaVA "
                "can't hold a scale: it would be trained against other logits than its own. Choose another LLM"
            )
    if _scales(config, _EMBEDDING_SCALE):
        raise UserError(
            f"{told} scales embeddings inside ({_EMBEDDING_SCALE} is {getattr(config, _EMBEDDING_SCALE)!r}), as "
            "Granite does, so words, visual tokens and hidden states can't be compared. Choose another LLM"
        )


def _scales(config: PreTrainedConfig, name: str) -> bool:
    return getattr(config, name, None) not in (None, 1, 1.0)


def require_unquantized(config: PreTrainedConfig, name: str, key: str) -> None:
    """Refuse a checkpoint whose weights are quantised already (GPTQ, AWQ, FP8, saved by bitsandbytes).

    Training quantises the weights of a full one itself, as the recipe says, and an export merges into those.

    Raises:
        UserError: they are, as its configuration says.
    """
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method is None:
            raise UserError(
                f"{key}: the config.json of {name} has a quantization_config without a quant_method, so how its "
                "weights are held is unknown; if they aren't quantised, remove quantization_config from config.json"
            )
        raise UserError(
            f"{key}: {name} is quantised already ({method!s:.40}, by its config.json), and such weights can "
            "neither be trained on nor exported; name the full checkpoint that it was made from: training holds "
            "the LLM in 4 bit by itself (quantization.mode)"
        )


def require_safetensors(name: str, key: str) -> None:
    """Refuse a folder whose weights are in pickle files alone; one without weights may do for a dry run.

    Raises:
        UserError: they are.
    """
    folder = Path(name)
    if next(folder.glob("pytorch_model*.bin"), None) and not next(folder.glob("*.safetensors"), None):
        raise UserError(
            f"{key}: the weights of {name} are in .bin files, and here they are read from .safetensors files; open it "
            "in transformers and save it to a new folder (save_pretrained), which writes such"
        )


def require_shapes_of_configuration(mismatched: Iterable[Any], name: str, key: str) -> None:
    """Refuse weights of other shapes than the configuration beside them asks for.

    Args:
        mismatched: name of a weight, its shape, and the one asked for, of each; transformers' own list.

    Raises:
        UserError: names the first.
    """
    for weight, found, asked in sorted(mismatched, key=str)[:1]:
        raise UserError(
            f"{key}: the weight {weight} of {name} has the shape {list(found)}, and its config.json asks for "
            f"{list(asked)}; take configuration and weights of one checkpoint, or correct its config.json"
        )


def require_one_table(model: Any, name: str, key: str) -> None:
    """Refuse an LLM whose head isn't the table of words that its configuration says it is.

    Raises:
        UserError: the checkpoint has two.
    """
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if model.config.tie_word_embeddings and head is not table and not torch.equal(head, table):
        raise UserError(
            f"{key}: {name} has a head of its own, but its config.json says tie_word_embeddings; set that to false"
        )


def require_sizes(config: PreTrainedConfig, name: str, key: str) -> None:
    """Refuse a configuration with sizes that no model has: to make such a one would have no end.

    Raises:
        UserError: names the first.
    """
    for one, most in _MOST.items():
        value = getattr(config, one, None)
        if value is not None and (not isinstance(value, int) or not 1 <= value <= most):
            raise UserError(
                f"{key}: the configuration of {name} has {one} {value!r}, and a model has 1 to {most:,}; fetch its "
                "config.json again"
            )


def without_dropout(config: PreTrainedConfig) -> None:
    """Turn off the dropout that an LLM's own configuration asks for: it is frozen; LoRA's is the recipe's."""
    for name, value in vars(config).items():
        if ("drop" in name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def require_finite_weights(model: nn.Module, name: str, key: str) -> None:
    """Refuse weights with NaN or infinity in them. Each is read once; 4-bit ones by their blocks' statistics.

    Raises:
        UserError: names the first.
    """
    if broken := broken_weights(model, most=1):
        raise UserError(
            f"{key}: the weight {broken[0]} of {name} has numbers in it that aren't finite (NaN or infinity); "
            "fetch the checkpoint again, or choose another"
        )


def broken_weights(model: nn.Module, most: int = 10) -> list[str]:
    """Names of the first weights with NaN or infinity in them. Each is read once; 4-bit ones by their statistics."""
    broken = (path for path, one in model.named_parameters() if not all(map(_is_finite, _numbers_of(one))))
    return list(itertools.islice(broken, most))


def _numbers_of(parameter: nn.Parameter) -> list[Tensor]:
    """The weights themselves, or the statistics that 4-bit ones are scaled by: NaN in a block is NaN in its own."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return [parameter]
    return [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]


def _is_finite(values: Tensor) -> bool:
    if not values.is_floating_point() or not values.numel() or values.is_meta:
        return True
    low, high = torch.aminmax(values.detach())  # NaN is passed on
    return math.isfinite(float(low)) and math.isfinite(float(high))


def require_rows_for_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: int, name: str, key: str, *, added: bool = True
) -> None:
    """Refuse a tokenizer with ids that a model has no embedding for.

    Args:
        rows: of the model's table of embeddings, E.
        added: also those that were added to the vocabulary: no text becomes one, but a chat template may write it.

    Raises:
        UserError: names the highest.
    """
    own = tokenizer.get_vocab()
    if not added:
        own = {word: one for word, one in own.items() if one not in tokenizer.added_tokens_decoder}
    highest, word = max(((one, word) for word, one in own.items()), default=(-1, ""))
    if highest >= rows:
        raise UserError(
            f"{key}: the tokenizer of {name} has ids up to {highest:,} ({word!r:.60}), and its model has {rows:,} "
            f"embeddings, for 0 to {rows - 1:,}; take tokenizer and weights of one checkpoint"
        )


def add_image_token(tokenizer: PreTrainedTokenizerBase, token: str, name: str) -> int:
    """The id of an LLM's image token; one that its tokenizer lacks is added.

    Raises:
        UserError: the token is a word or has another use, or its new id is a word's.
    """
    known = tokenizer.get_vocab()
    if token in known:
        own = {str(one) for one in tokenizer.added_tokens_decoder.values()}
        used = {role: one for role, one in tokenizer.special_tokens_map.items() if isinstance(one, str)}
        role = next((role for role, one in used.items() if one == token), None)
        # A vocabulary may list such a token among its words.
        bracketed = len(token) > 2 and token[0] in "<[" and token[-1] in ">]"
        if role is not None or not (token in own or bracketed):
            what = f"the {role}" if role is not None else "a word"
            raise UserError(
                f"model.image_token: {token!r} is {what} of {name}'s tokenizer, so texts would hold pictures; choose "
                "another, such as <image>"
            )
        return known[token]
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    new = int(tokenizer.convert_tokens_to_ids(token))
    if new in known.values():
        word = next(word for word, one in known.items() if one == new)
        raise UserError(
            f"model.llm: the ids of {name}'s tokenizer have holes, so the new token {token!r} gets the id {new}, which "
            f"is that of {word!r}; set model.image_token to a token that it has and never uses, or choose another LLM"
        )
    return new
