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
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlavaConfig, PreTrainedTokenizerBase

from basic_lite import __version__
from basic_lite.errors import UserError
from basic_lite.model.adapt import ADAPTER, lora_parameters, projector_parameters
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import Recipe

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
    samples: int = 0,
) -> None:
    """Write a bundle. The manifest comes last, so a bundle that was cut off has none and is refused.

    Raises:
        UserError: a trained weight isn't finite; nothing is written then.
    """
    _require_finite(parts, step)
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
    tokenizer.save_pretrained(str(folder / "tokenizer"), save_jinja_files=False)
    files += [f"tokenizer/{path.name}" for path in sorted((folder / "tokenizer").iterdir()) if path.is_file()]
    manifest = {
        "format": FORMAT,
        "basic_lite": __version__,
        "stage": recipe.stage,
        "step": step,
        "total_steps": total_steps,
        # The order of an epoch follows from seed and epoch, so the next sample is found without replaying any.
        "data": {"epoch": epoch, "samples": samples, "seed": recipe.seed},
        "models": {"base": recipe.model.base, "vision": recipe.model.vision, "llm": recipe.model.llm},
        "model_facts": model_facts(parts.model.config),
        "projector_shapes": {name: list(t.shape) for name, t in parts.projector.state_dict().items()},
        "files": {name: _facts(folder / name) for name in files},
    }
    _write_manifest(folder, manifest)


def _require_finite(parts: Parts, step: int) -> None:
    trained = {f"projector {name}": p for name, p in projector_parameters(parts).items()}
    trained |= lora_parameters(parts.model)
    broken = [name for name, parameter in trained.items() if not bool(torch.isfinite(parameter).all())]
    if broken:
        raise UserError(
            f"after step {step} the weights are not finite "
            f"({', '.join(broken[:3])}{', …' if len(broken) > 3 else ''}); "
            "they were not saved. Lower training.projector_learning_rate or training.learning_rate, and start again "
            "under another name or go on from the last checkpoint with --resume"
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


def find_bundle(place: Path, key: str = "run folder") -> Path:
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


def open_bundle(place: Path, key: str = "run folder") -> Bundle:
    """Read and verify a bundle.

    Raises:
        UserError: no bundle, a foreign format, or a file whose hash isn't the manifest's.
    """
    folder = find_bundle(place, key)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        version = manifest["format"]
        if not {PROJECTOR, RECIPE} <= files.keys():
            raise ValueError(f"it lists no {PROJECTOR} or {RECIPE}")
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
