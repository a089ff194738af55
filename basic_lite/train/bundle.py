"""What a run leaves: one bundle holds adapter, projector, tokenizer, recipe and a manifest with hashes.

A bundle is a folder::

    manifest.json                      format, step, models, sha256 of every file
    recipe.json                        the resolved recipe
    projector.safetensors              float32
    adapter/adapter_config.json        PEFT's layout, only with LoRA
    adapter/adapter_model.safetensors
    tokenizer/ …                       JSON

Safetensors and JSON only. A checkpoint is a bundle plus what is needed to go on (optimizer, scheduler, generators).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from basic_lite import __version__
from basic_lite.errors import UserError
from basic_lite.model.adapt import ADAPTER, adapt, lora_parameters
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.parts import Parts
from basic_lite.schema import Recipe

FORMAT = 1
MANIFEST = "manifest.json"
PROJECTOR = "projector.safetensors"
RECIPE = "recipe.json"
TRAINER_STATE = "trainer_state.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
# PEFT's files name modules as its wrapper sees them, so that PeftModel.from_pretrained reads them.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files match its manifest."""

    folder: Path
    manifest: dict[str, Any]
    recipe: Recipe

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def has_adapter(self) -> bool:
        return ADAPTER_WEIGHTS in self.manifest["files"]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_bundle(
    folder: Path,
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    step: int,
    total_steps: int,
    epoch: float = 0.0,
) -> None:
    """Write a bundle. The manifest comes last, so a bundle that was cut off has none and is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    _save_tensors(parts.projector.state_dict(), folder / PROJECTOR)
    files = [PROJECTOR, RECIPE]
    (folder / RECIPE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    if lora_parameters(parts.model):
        (folder / "adapter").mkdir(exist_ok=True)
        state = get_peft_model_state_dict(parts.model, adapter_name=ADAPTER)
        _save_tensors({PEFT_PREFIX + name: tensor for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS)
        config = parts.model.peft_config[ADAPTER]
        config.base_model_name_or_path = recipe.model.base or recipe.model.llm
        config.inference_mode = True
        config.save_pretrained(str(folder / "adapter"))
        config.inference_mode = False
        files += [ADAPTER_WEIGHTS, "adapter/adapter_config.json"]
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    files += [f"tokenizer/{path.name}" for path in sorted((folder / "tokenizer").iterdir()) if path.is_file()]
    manifest = {
        "format": FORMAT,
        "basic_lite": __version__,
        "stage": recipe.stage,
        "step": step,
        "total_steps": total_steps,
        # The order of an epoch follows from seed and epoch, so the next sample is found without replaying any.
        "data": {"epoch": epoch, "samples": step * recipe.training.global_batch, "seed": recipe.seed},
        "models": {"base": recipe.model.base, "vision": recipe.model.vision, "llm": recipe.model.llm},
        "projector_shapes": {name: list(t.shape) for name, t in parts.projector.state_dict().items()},
        "files": {name: _facts(folder / name) for name in files},
    }
    _write_manifest(folder, manifest)


def seal_checkpoint(folder: Path) -> None:
    """Take a checkpoint's training state into its manifest; until then it isn't one that a run goes on from."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    state = [path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".pth") or path.name == TRAINER_STATE]
    manifest["files"] |= {path.name: _facts(path) for path in state}
    _write_manifest(folder, manifest)


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    scratch = folder / f"{MANIFEST}.part"
    scratch.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, folder / MANIFEST)


def _save_tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, str(path), {"format": "pt"})


def find_bundle(place: Path, key: str = "RUN") -> Path:
    """The bundle meant by ``place``: itself, a run folder's ``final``, or its newest checkpoint.

    Raises:
        UserError: nothing of the kind is there.
    """
    if (place / MANIFEST).is_file():
        return place
    if (place / "final" / MANIFEST).is_file():
        return place / "final"
    checkpoints = checkpoints_of(place)
    if checkpoints:
        return checkpoints[-1]
    if not place.exists():
        raise UserError(f"{key}: there is no folder {place}; give a run folder (runs/NAME) or a bundle inside one")
    raise UserError(
        f"{key}: {place} holds no bundle (no {MANIFEST}, no final/, no checkpoint-N/): the run wrote none yet, or "
        f"this is "
        "not a run folder; give a run folder (runs/NAME) that has saved a checkpoint"
    )


def checkpoints_of(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    found = []
    for path in run.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and _is_sealed(path):
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def _is_sealed(folder: Path) -> bool:
    try:
        return TRAINER_STATE in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_bundle(place: Path, key: str = "RUN") -> Bundle:
    """Read and verify a bundle.

    Raises:
        UserError: no bundle, a foreign format, or a file whose hash isn't the manifest's.
    """
    folder = find_bundle(place, key)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MANIFEST} can't be read ({error}); the bundle is damaged, take another checkpoint"
        ) from error
    if version != FORMAT:
        raise UserError(
            f"{folder}: bundle format {version}, this version reads {FORMAT}; use the basic-lite that wrote it"
        )
    wrong = []
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256(path) != facts["sha256"]:
            wrong.append(f"{name} was changed (its sha256 isn't the manifest's)")
    if wrong:
        raise UserError(
            f"the bundle {folder} doesn't hold together: {'; '.join(wrong)}. Parts of different runs must not be "
            f"mixed; "
            "restore the files, or take another checkpoint"
        )
    recipe = Recipe.model_validate_json((folder / RECIPE).read_text(encoding="utf-8"))
    return Bundle(folder, manifest, recipe)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); take another checkpoint") from error


def restore_projector(bundle: Bundle, projector: nn.Module, key: str = "model.projector") -> None:
    """Load a bundle's projector into ``projector``.

    Raises:
        UserError: its shapes are another model's.
    """
    state = _read_tensors(bundle.folder / PROJECTOR)
    own = projector.state_dict()
    wrong = [
        f"{name} is {_shape(state.get(name))}, the model wants {_shape(own.get(name))}"
        for name in sorted(own.keys() | state.keys())
        if _shape(state.get(name)) != _shape(own.get(name))
    ]
    if wrong:
        models = {k: v for k, v in bundle.manifest["models"].items() if v}
        raise UserError(
            f"{key}: the projector in {bundle.folder} doesn't fit this model ({'; '.join(wrong)}). It was trained for "
            f"{models}; use it with those models, or train a projector for these (stage 1)"
        )
    projector.load_state_dict(state)


def restore_adapter(bundle: Bundle, parts: Parts) -> None:
    """Load a bundle's LoRA weights into the injected adapter.

    Raises:
        UserError: names or shapes differ from the adapter of this recipe.
    """
    state = {
        name.removeprefix(PEFT_PREFIX): tensor
        for name, tensor in _read_tensors(bundle.folder / ADAPTER_WEIGHTS).items()
    }
    own = get_peft_model_state_dict(parts.model, adapter_name=ADAPTER)
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(
            f"the adapter in {bundle.folder} doesn't fit this model's LoRA ({len(state)} tensors against {len(own)}, "
            f"or other "
            "shapes): lora.rank, lora.targets or the LLM differ from the run that wrote it; use that run's recipe"
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
    restore_projector(bundle, loaded.parts.projector)
    if bundle.has_adapter:
        restore_adapter(bundle, loaded.parts)
    loaded.model.requires_grad_(False)
    loaded.model.eval()
    return loaded, bundle


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)
