"""Load a bundle back into a model: projector, adapter, or the whole trained model."""

from pathlib import Path

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlavaConfig

from basic_lite.errors import UserError
from basic_lite.model.adapt import ADAPTER, adapt
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.parts import Parts
from basic_lite.train.bundle import ADAPTER_WEIGHTS, PEFT_PREFIX, PROJECTOR, Bundle, model_facts, open_bundle
from basic_lite.train.files import read_tensors


def restore_projector(bundle: Bundle, parts: Parts, key: str = "model.projector") -> None:
    """Load a bundle's projector into the model.

    Raises:
        UserError: it was trained for another model.
    """
    require_same_model(bundle, parts.model.config, key)
    state = read_tensors(bundle.folder / PROJECTOR)
    theirs, ours = ({n: list(t.shape) for n, t in one.items()} for one in (state, parts.projector.state_dict()))
    names = sorted(ours.keys() | theirs.keys())
    _require_none(
        bundle,
        key,
        [f"{n} is {theirs.get(n)}, the model wants {ours.get(n)}" for n in names if theirs.get(n) != ours.get(n)],
    )
    parts.projector.load_state_dict(state)


def require_same_model(bundle: Bundle, config: LlavaConfig, key: str) -> None:
    """Refuse a bundle of another kind of model: even where shapes agree, its projector speaks to another LLM."""
    theirs, ours = bundle.manifest.get("model_facts", {}), model_facts(config)
    wrong = [
        f"{name}: {theirs[name]}, here {ours[name]}" for name in ours if theirs.get(name, ours[name]) != ours[name]
    ]
    _require_none(bundle, key, wrong)


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
    state = {
        name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_tensors(bundle.folder / ADAPTER_WEIGHTS).items()
    }
    own = get_peft_model_state_dict(parts.model, adapter_name=ADAPTER)
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(
            f"the adapter in {bundle.folder} doesn't fit this model's LoRA ({len(state)} tensors against {len(own)}, "
            "or other shapes): lora.rank, lora.targets or the LLM differ from the run that wrote it. "
            "Use that run's recipe"
        )
    set_peft_model_state_dict(parts.model, state, adapter_name=ADAPTER)


def load_trained(place: Path, device: torch.device) -> tuple[Loaded, Bundle]:
    """The model of a run folder or bundle, adapter and projector restored, in eval mode.

    Raises:
        UserError: no bundle, or one that doesn't hold together or fit its models.
    """
    bundle = open_bundle(place)
    loaded = load_base(bundle.recipe, device)
    adapt(loaded.parts, bundle.recipe)
    restore_projector(bundle, loaded.parts)
    if bundle.has_adapter:
        restore_adapter(bundle, loaded.parts)
    loaded.model.requires_grad_(False)
    loaded.model.eval()
    return loaded, bundle
