"""What a run leaves, written and loaded back: adapter, projector, tokenizer, recipe, and a manifest with hashes.

A bundle is a folder::

    manifest.json                      format, step, models, sha256 of every file
    recipe.json                        the resolved recipe
    projector.safetensors              float32
    adapter/adapter_config.json        PEFT's layout, only with LoRA
    adapter/adapter_model.safetensors
    tokenizer/ …                       JSON

A checkpoint is a bundle plus what is needed to continue: see ``checkpoint``.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import LlavaConfig, PreTrainedTokenizerBase

from basic_lite.console import new_run_from, note
from basic_lite.errors import UserError
from basic_lite.model.adapt import ADAPTER, adapt, lora_parameters, projector_parameters
from basic_lite.model.base_files import digests_of_models
from basic_lite.model.device import dtype_name
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import Recipe
from basic_lite.training.bundle_files import ADAPTER_WEIGHTS, Bundle, open_bundle, require_as_opened
from basic_lite.training.files import sha256, write_json
from basic_lite.training.manifest import FORMAT
from basic_lite.training.places import MANIFEST, PROJECTOR, RECIPE_JSON
from basic_lite.training.tensor_files import read_tensors, save_tensors
from basic_lite.version import __version__

# PEFT's files name modules as its wrapper sees them, so that PeftModel.from_pretrained reads them.
PEFT_PREFIX = "base_model.model."


def write_bundle(
    folder: Path, parts: Parts, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, facts: dict[str, Any]
) -> None:
    """Write a bundle into ``folder``, a scratch folder of ``written_whole``. The manifest lists all that is there then.

    Args:
        facts: the run's facts for the manifest: step, total_steps, data, …

    Raises:
        UserError: a trained weight isn't finite; nothing is written then.
    """
    _require_finite(parts, int(facts["step"]))
    save_tensors(parts.projector.state_dict(), folder / PROJECTOR)
    write_json(folder / RECIPE_JSON, recipe.model_dump(mode="json"))
    if lora_parameters(parts.model):
        _write_adapter(folder / "adapter", parts, recipe)
    tokenizer.save_pretrained(str(folder / "tokenizer"), save_jinja_files=False)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "basic_lite": __version__,
        "stage": recipe.stage,
        **facts,
        "models": {"base": recipe.model.base, "vision": recipe.model.vision, "llm": recipe.model.llm},
        "model_facts": model_facts(parts.model.config),
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in files
        },
    }
    write_json(folder / MANIFEST, manifest)


def _write_adapter(folder: Path, parts: Parts, recipe: Recipe) -> None:
    """LoRA in PEFT's own layout."""
    folder.mkdir()
    state = {PEFT_PREFIX + name: tensor for name, tensor in _lora_state(parts).items()}
    save_tensors(state, folder / "adapter_model.safetensors")
    config = copy.deepcopy(parts.model.peft_config[ADAPTER])
    config.base_model_name_or_path = recipe.model.base or recipe.model.llm
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _lora_state(parts: Parts) -> dict[str, Tensor]:
    """LoRA's weights by PEFT's names. Asked for the whole model, PEFT would pack each 4-bit layer's statistics anew."""
    return get_peft_model_state_dict(parts.model, lora_parameters(parts.model), adapter_name=ADAPTER)


def _require_finite(parts: Parts, step: int) -> None:
    trained = {f"projector {name}": p for name, p in projector_parameters(parts).items()}
    trained |= lora_parameters(parts.model)
    broken = [name for name, parameter in trained.items() if not bool(torch.isfinite(parameter).all())]
    if broken:
        some = ", ".join(broken[:3]) + (", …" if len(broken) > 3 else "")
        raise UserError(
            f"after step {step} the weights are not finite ({some}), so they were not saved. "
            "Lower training.projector_learning_rate or training.learning_rate, and start again under another name; "
            "or continue from the last checkpoint with --resume"
        )


def model_facts(config: LlavaConfig) -> dict[str, Any]:
    """What a projector depends on: the kinds and sizes of both models and the features between them."""
    vision, text = config.vision_config, config.text_config
    size = [vision.model_type, vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size]
    return {
        "vision": size,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select": config.vision_feature_select_strategy,
        "llm": [text.model_type, text.hidden_size, text.num_hidden_layers],
    }


def tensors_of(bundle: Bundle, name: str) -> dict[str, Tensor]:
    """A file of a bundle, as it was when the bundle was opened.

    Raises:
        UserError: it is another one by now, or can't be read.
    """
    path = bundle.folder / name
    state = read_tensors(path) if path.is_file() else {}
    require_as_opened(bundle, [name])
    return state


def restore_projector(bundle: Bundle, parts: Parts, key: str = "model.projector") -> None:
    """Load a bundle's projector into the model.

    Raises:
        UserError: it was trained for another model.
    """
    require_same_model(bundle, parts.model.config, key)
    state = tensors_of(bundle, PROJECTOR)
    theirs, ours = (
        {n: [*t.shape, dtype_name(t.dtype)] for n, t in one.items()} for one in (state, parts.projector.state_dict())
    )
    names = sorted(ours.keys() | theirs.keys())
    _require_none(
        bundle,
        key,
        [f"{n} is {theirs.get(n)}, the model wants {ours.get(n)}" for n in names if theirs.get(n) != ours.get(n)],
    )
    parts.projector.load_state_dict(state)


def require_same_model(bundle: Bundle, config: LlavaConfig, key: str) -> None:
    """Refuse a bundle of another kind of model: even where shapes agree, its projector speaks to another LLM.

    Raises:
        UserError: it is of another kind.
    """
    theirs, ours = bundle.manifest.get("model_facts", {}), model_facts(config)
    wrong = [
        f"{name}: {theirs[name]}, here {ours[name]}" for name in ours if theirs.get(name, ours[name]) != ours[name]
    ]
    _require_none(bundle, key, wrong)


def require_same_files(bundle: Bundle, digests: Mapping[str, str]) -> None:
    """Refuse to go on with a model whose files were changed since the bundle was written.

    Args:
        digests: ``digests_of_models`` now.

    Raises:
        UserError: names it.
    """
    if changed := changed_files(bundle, digests):
        raise UserError(
            f"--resume: {changed}. A run goes on with the model that it began with. "
            "Restore these files, or train with the new ones in a new run: " + new_run_from(bundle.folder.parent)
        )


def changed_files(bundle: Bundle, digests: Mapping[str, str]) -> str:
    """Which models' files were changed since the bundle was written, in words; "" where none was.

    Args:
        digests: ``digests_of_models`` now.
    """
    was = bundle.manifest.get("model_files", {})  # older versions wrote none
    names = {f"model.{kind}": name for kind, name in bundle.manifest["models"].items()}
    keys = [key for key, digest in digests.items() if was.get(key, digest) != digest]
    changed = " and ".join(f"{key} ({names[key]})" for key in keys)
    what = "weights or config.json" if keys == ["model.llm"] else "weights, config.json or image processor"
    return f"{changed} changed since {bundle.folder} was saved: {what}" if keys else ""


def note_changed_files(bundle: Bundle) -> bool:
    """Say on stderr where a base model isn't what it was when the bundle was trained; returns whether it was said."""
    if changed := changed_files(bundle, digests_of_models(bundle.recipe.model)):
        note(f"note: {changed}. What was trained is used with another model than its own. Restore these files")
    return bool(changed)


def _require_none(bundle: Bundle, key: str, wrong: list[str]) -> None:
    if wrong:
        models = {k: v for k, v in bundle.manifest["models"].items() if v}
        raise UserError(
            f"{key}: the projector in {bundle.folder} doesn't fit this model ({'; '.join(wrong)}). "
            f"It was trained for {models}; use it with those models, or train a projector for these (stage 1)"
        )


def restore_adapter(bundle: Bundle, parts: Parts) -> None:
    """Load a bundle's LoRA weights into the injected adapter.

    Raises:
        UserError: names or shapes differ from the adapter of this recipe.
    """
    state = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors_of(bundle, ADAPTER_WEIGHTS).items()}
    own = _lora_state(parts)
    if _layout(state) != _layout(own):
        raise UserError(
            f"the adapter in {bundle.folder} doesn't fit this model's LoRA ({len(state)} tensors against {len(own)}, "
            "or other shapes or types): lora.rank, lora.targets or the LLM differ from the run that wrote it. "
            "Use that run's recipe"
        )
    set_peft_model_state_dict(parts.model, state, adapter_name=ADAPTER)


def _layout(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, bool]]:
    """What must be the same of two adapters; one may be rounded to the other's type."""
    return {name: (tensor.shape, tensor.is_floating_point()) for name, tensor in state.items()}


def load_trained(place: Path, device: torch.device, *, told: bool = False) -> tuple[Loaded, Bundle]:
    """The model of a run folder or bundle, adapter and projector restored, in eval mode.

    Args:
        told: a base model whose files were changed since has been noted already; else it is noted on stderr here.

    Raises:
        UserError: no bundle, or one that doesn't hold together or fit its models.
    """
    bundle = open_bundle(place)
    loaded = load_base(bundle.recipe, device)
    if not told:
        note_changed_files(bundle)
    adapt(loaded.parts, bundle.recipe)
    restore_projector(bundle, loaded.parts)
    if bundle.has_adapter:
        restore_adapter(bundle, loaded.parts)
    loaded.model.requires_grad_(False)
    loaded.model.eval()
    return loaded, bundle
