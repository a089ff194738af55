"""Load the model that a recipe names onto the device: vision and LLM put together, or a llava-hf checkpoint.

Either way the result is one ``LlavaForConditionalGeneration`` with the LLM's linear layers in NF4 and nothing else
quantised. Weights are read once and quantised as they are read.
"""

import copy
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, is_flash_attn_2_available

from basic_lite.choices import require_one_of
from basic_lite.errors import UserError
from basic_lite.model.checks import (
    read_weight_map,
    require_finite_weights,
    require_one_table,
    require_shapes_of_configuration,
)
from basic_lite.model.device import has_bfloat16
from basic_lite.model.frontend import (
    Frontend,
    llava_config_of,
    llm_config_of,
    load_frontend,
    require_no_adapter,
    table_rows,
    unreadable,
)
from basic_lite.model.generation import require_own_generation
from basic_lite.model.hub import file_of, local_only
from basic_lite.model.llava import BasicLlavaForConditionalGeneration, freeze_in_no_grad
from basic_lite.model.offload import ActivationOffload
from basic_lite.model.parts import Parts, find_parts
from basic_lite.recipe.schema import Device, QuantizationSection, Recipe

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it."""

    model: BasicLlavaForConditionalGeneration
    parts: Parts
    frontend: Frontend
    offloaded: ActivationOffload | None = None  # what keeps layer inputs on the host; None: they stay on the device

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.frontend.tokenizer

    @property
    def vocabulary_ids(self) -> torch.Tensor:
        """Ids [V'] that some token has, without the image token: the rows of E that mean something."""
        return torch.tensor(sorted({*self.tokenizer.get_vocab().values()} - {self.parts.image_token_id}))


def pick_device(name: str, key: str = "training.device") -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` → a device.

    Raises:
        UserError: cuda is asked for and there is none, or the name is another one.
    """
    require_one_of(name, get_args(Device), key)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{key} is cuda, but torch sees no GPU (torch.cuda.is_available() is false); "
            f"install a CUDA build of torch and check `nvidia-smi`, or set {key} to cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # Each process of a launcher such as accelerate's has its own card.
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: the name is another one.
    """
    require_one_of(name, ("auto", *_DTYPES), "dtype")
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return _DTYPES[name]


def load_base(recipe: Recipe, device: torch.device, frontend: Frontend | None = None) -> Loaded:
    """The model of ``recipe`` before any adapter: all frozen, in eval mode, projector in float32.

    Raises:
        UserError: a checkpoint is missing, of a wrong kind, or lacks its image token.
    """
    if recipe.model.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attention is flash_attention_2, but flash-attn isn't installed or finds no GPU: "
            "pip install flash-attn --no-build-isolation, or set model.attention=sdpa"
        )
    frontend = frontend or load_frontend(recipe.model)
    loader = _open_llava if recipe.model.base is not None else _compose
    model = loader(recipe, frontend, pick_dtype(recipe.model.dtype, device), device)
    model.requires_grad_(False).eval()
    model.config.use_cache = False
    # What generation needs.
    model.generation_config.pad_token_id = frontend.tokenizer.pad_token_id
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = frontend.tokenizer.eos_token_id
    parts = find_parts(model)
    freeze_in_no_grad(parts.vision_tower)
    return Loaded(model, parts, frontend)


def quantization_config(
    section: QuantizationSection, dtype: torch.dtype, device: torch.device, skip: list[str]
) -> BitsAndBytesConfig | None:
    """The configuration for bitsandbytes; None: no quantisation.

    Args:
        skip: full names of modules that stay as they are, or ends of names.
    """
    if section.mode == "none":
        return None
    compute = dtype if section.compute_dtype == "auto" else pick_dtype(section.compute_dtype, device)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=section.double,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=skip,
    )


def read_checkpoint(cls: Any, name: str, key: str, **kwargs: Any) -> Any:
    """The model of a checkpoint, all of it its own: every way to open weights goes through here.

    Answers are made by settings of ours, whatever the checkpoint's own say.

    Args:
        cls: a class with transformers' ``from_pretrained``, which gets ``kwargs``.
        name: folder or hub name.
        key: recipe key or argument that names it.

    Raises:
        UserError: it can't be read, its index names a file elsewhere, an adapter lies in it, a weight is missing, not
            finite or of another shape than its configuration says, or its end tokens are none.
    """
    require_no_adapter(name, key)
    for index in (Path(name, one) for one in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)):
        if os.path.isfile(index):  # transformers opens whatever file it names
            read_weight_map(index, name, key)
    try:
        model, info = cls.from_pretrained(
            name,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=False,
            local_files_only=local_only(name),
            **kwargs,
        )
    except Exception as error:  # whatever a damaged or foreign file makes transformers and safetensors raise
        raise unreadable(name, key, error) from error
    require_shapes_of_configuration(info["mismatched_keys"], name, key)
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"{key}: {name} lacks {len(info['missing_keys'])} of the weights of {type(model).__name__} ({some}, …): "
            "it is another kind of checkpoint than its configuration says, or the download is incomplete; "
            "fetch it again"
        )
    require_finite_weights(model, name, key)
    require_own_generation(model, name, key)
    keep_weights_unpacked(model)
    return model


def _llm_options(recipe: Recipe, dtype: torch.dtype, device: torch.device, skip: list[str]) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "quantization_config": quantization_config(recipe.quantization, dtype, device, skip),
        "attn_implementation": recipe.model.attention,
    }


def _compose(
    recipe: Recipe, frontend: Frontend, dtype: torch.dtype, device: torch.device
) -> BasicLlavaForConditionalGeneration:
    """A vision encoder, a fresh projector and a causal LLM, put together."""
    section, config = recipe.model, frontend.config
    assert section.vision is not None and section.llm is not None
    options = _llm_options(recipe, dtype, device, ["lm_head"])
    # Read anew: what an earlier load has made of the frontend's is no checkpoint's.
    options["config"] = llm_config_of(section.llm)
    llm = read_checkpoint(AutoModelForCausalLM, section.llm, "model.llm", **options)
    require_one_table(llm, section.llm, "model.llm")
    if not hasattr(llm, llm.base_model_prefix):
        raise UserError(
            f"model.llm: {section.llm} ({type(llm).__name__}) isn't built as a decoder below a head; choose another LLM"
        )
    with torch.device("meta"):
        tower = type(AutoModel.from_config(config.vision_config, trust_remote_code=False))
    options = {"config": config.vision_config, "dtype": dtype, "device_map": {"": device}}
    vision = read_checkpoint(tower, section.vision, "model.vision", **options)
    before = _probe_logits(llm, device)
    _give_row(llm, frontend.image_token_id)
    config.text_config = llm.config
    with torch.device("meta"):
        model = BasicLlavaForConditionalGeneration(config)
    # Made on the CPU in float32 with torch's own initialisation of linear layers, which is LLaVA's.
    projector = type(model.model.multi_modal_projector)(config).to(device)
    _assemble(model, vision, getattr(llm, llm.base_model_prefix), llm.get_output_embeddings(), projector)
    model.generation_config = llm.generation_config
    _same_logits(before, _probe_logits(model, device), section.llm)
    return model


def _open_llava(
    recipe: Recipe, frontend: Frontend, dtype: torch.dtype, device: torch.device
) -> BasicLlavaForConditionalGeneration:
    """An existing llava-hf checkpoint; its projector is read in float32."""
    section = recipe.model
    assert section.base is not None
    # Names of modules are matched from the start of the full name, or as a suffix (transformers 5.x): a bare
    # "vision_tower" matches neither and would leave the tower in 4 bit.
    skip = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    options = _llm_options(recipe, dtype, device, skip)
    options["config"] = llava_config_of(section.base)
    source = read_checkpoint(LlavaForConditionalGeneration, section.base, "model.base", **options)
    require_one_table(source, section.base, "model.base")
    config = source.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        model = BasicLlavaForConditionalGeneration(config)
    projector = type(model.model.multi_modal_projector)(config)
    projector.load_state_dict(_projector_state(section.base))
    inner = source.model
    _assemble(model, inner.vision_tower, inner.language_model, source.lm_head, projector.to(device))
    model.generation_config = source.generation_config
    return model


def _projector_state(name: str) -> dict[str, torch.Tensor]:
    """The projector's weights of a llava-hf checkpoint in float32, straight from its safetensors files.

    Taken from the loaded model they would have been rounded to ``model.dtype`` on the way.
    """
    marker = "multi_modal_projector."
    index = file_of(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        shards = [SAFE_WEIGHTS_NAME]
    else:
        weight_map = read_weight_map(Path(index), name, "model.base")
        shards = sorted({shard for key, shard in weight_map.items() if marker in key})
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        path = file_of(name, shard)
        if path is None:
            raise UserError(
                f"model.base: {name} has no {shard}: its weights are not in safetensors, "
                f"or the download is incomplete; fetch it again: hf download {name}"
            )
        try:
            with safe_open(path, framework="pt") as tensors:
                names = [key for key in tensors.keys() if marker in key]  # noqa: SIM118
                state |= {key.split(marker)[1]: tensors.get_tensor(key).float() for key in names}
        except SafetensorError as error:
            raise unreadable(name, "model.base", error) from error
    return state


def planned_model(frontend: Frontend, dtype: torch.dtype) -> BasicLlavaForConditionalGeneration:
    """A frontend's model on the meta device, with a configuration of its own: no weight is read or allocated."""
    config = copy.deepcopy(frontend.config)
    config.text_config.vocab_size = table_rows(config.text_config.vocab_size, frontend.image_token_id)
    with torch.device("meta"):
        model = BasicLlavaForConditionalGeneration(config).to(dtype)
        model.model.multi_modal_projector.float()
    model.tie_weights()
    return model


def _give_row(llm: Any, image_token_id: int) -> None:
    """Make sure that the image token has a row in the embedding table and the head.

    What the row holds never matters, since the projector's output takes its place, but ids are looked up before that.
    New rows get the mean of the others: a zero row in the head could win where all logits are negative.
    """
    rows = llm.get_input_embeddings().weight.shape[0]
    size = table_rows(rows, image_token_id)
    if size == rows:
        return
    llm.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for table in (llm.get_input_embeddings().weight, llm.get_output_embeddings().weight):
            table[rows:] = table[:rows].float().mean(dim=0).to(table.dtype)
    log.info("embedding table and head grew from %d to %d rows for the image token", rows, size)


def _assemble(
    model: BasicLlavaForConditionalGeneration,
    vision: nn.Module,
    language: nn.Module,
    head: nn.Module,
    projector: nn.Module,
) -> None:
    model.model.vision_tower = vision
    model.model.language_model = language
    model.model.multi_modal_projector = projector
    model.lm_head = head
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"weights were not loaded for {left[:5]}")


@torch.no_grad()
def _probe_logits(model: Any, device: torch.device) -> torch.Tensor:
    model.eval()
    ids = torch.arange(3, 11, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    return model(input_ids=ids, use_cache=False).logits.float()


def _same_logits(before: torch.Tensor, after: torch.Tensor, name: str) -> None:
    """Refuse a composed model whose logits on text aren't the LLM's.

    Some families change the logits after the head (soft caps, scales), and LLaVA doesn't. Training against other logits
    than the LLM's own would quietly ruin it.

    Raises:
        UserError: they differ.
    """
    after = after[..., : before.shape[-1]]
    if not bool(torch.isfinite(before).all()):
        raise UserError(
            f"model.llm: {name} computes logits that are no numbers (NaN or infinity), with model.dtype and "
            "model.attention as they are; fetch it again, set model.dtype=float32, or choose another LLM"
        )
    error = (before - after).abs().max().item()
    if not error <= 1e-3 * max(1.0, before.abs().max().item()):
        raise UserError(
            f"model.llm: {name} computes its logits in a way that LLaVA can't hold. "
            f"They differ by {error:.3g} after composition; "
            "a soft cap or a scale of the logits does that, as in Gemma 2 or Cohere. Choose another LLM"
        )


def keep_weights_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for CPU inference.

    Where the CPU has AVX512-BF16, the first forward in eval mode rewrites the weights into an inference-only format
    (bitsandbytes 0.50, ``Linear4bit.forward``); training continues after an evaluation, so that must not happen.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
