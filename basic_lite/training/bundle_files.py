"""A bundle's files, found and verified. No weight is loaded, so no torch is needed; ``bundle`` says what is in it."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basic_lite.choices import mend_of_missing
from basic_lite.errors import UserError
from basic_lite.model.kinds import kind_in_name
from basic_lite.outside import read_file, read_text
from basic_lite.recipe import shipped_recipes
from basic_lite.recipe.schema import Recipe
from basic_lite.training.files import sha256, write_json
from basic_lite.training.manifest import FORMAT, first_problem, read_manifest
from basic_lite.training.places import (
    MANIFEST,
    PROJECTOR,
    RECIPE_JSON,
    RUNS,
    TRAINER_STATE,
    holds_bundle,
    is_run,
    newest_first,
)
from basic_lite.version import __version__

ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
# What a checkpoint has besides.
OPTIMIZER, GENERATORS, TRAINING = "optimizer.safetensors", "generators.safetensors", "training.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files match its manifest.

    Attributes:
        digest: of the manifest's file as it was read; a run that goes on may have replaced it since.
    """

    folder: Path
    manifest: dict[str, Any]
    recipe: Recipe
    digest: str = ""

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def has_adapter(self) -> bool:
        return ADAPTER_WEIGHTS in self.manifest["files"]

    @property
    def weights(self) -> list[str]:
        """The files of what was trained."""
        return [PROJECTOR, ADAPTER_WEIGHTS] if self.has_adapter else [PROJECTOR]


def find_bundle(place: Path, key: str = "run folder", runs: Path = RUNS) -> Path:
    """The bundle meant by ``place``: itself, a run folder's ``final``, its newest checkpoint, or else its best step.

    Args:
        runs: where a run of that name is looked for, to say so. It isn't taken: there may be data of the same name.

    Raises:
        UserError: nothing of the kind is there.
    """
    # Of ``os.path``, since pathlib's own raise where a name is too long for a file system.
    if os.path.isfile(place / MANIFEST):
        return place
    if os.path.isdir(place) and (found := newest_first(place)):
        return found[0]
    if place.name.startswith("checkpoint-"):
        raise UserError(
            f"{key}: {place} lacks its {MANIFEST}: it is damaged. Take another one (--resume --checkpoint STEP)"
        )
    if not os.path.exists(place):
        if kind := kind_in_name(place.as_posix()):
            raise UserError(
                f"{key}: {place} is no run but, by its name, {kind} model, and models of that kind can't be trained "
                "here; name a llava-hf checkpoint in model.base, or CLIP or SigLIP in model.vision and an LLM in "
                "model.llm"
            )
        # What a shipped recipe starts from is a run of another one. The demo's have other names.
        shipped = {RUNS / path.stem for path in shipped_recipes() if not path.stem.startswith("demo_")}
        made = f"`basic-lite train {place.name}` makes it" if place in shipped else ""
        hint = made or meant_run(place, runs) or "give a run folder (runs/NAME) or a bundle inside one"
        raise UserError(f"{key}: there is no folder {place}; {hint}")
    if place.is_file():
        raise UserError(f"{key}: {place} is a file; give the folder of a run (runs/NAME) or of a bundle inside one")
    if (place / "config.json").is_file():
        raise UserError(
            f"{key}: {place} is a model that transformers opens (an export?) and no run; `chat`, `inspect` and the "
            "key model.base open it; all else takes the run that it was exported from"
        )
    if inside := _runs_in(place, holds_bundle):
        raise UserError(f"{key}: {inside}")
    raise UserError(
        f"{key}: {place} holds no bundle (no {MANIFEST}, no final/, no checkpoint-N/): "
        "the run wrote none yet, or this is not a run folder; "
        + (meant_run(place, runs) or "give a run folder (runs/NAME) that has saved a checkpoint")
    )


def meant_run(place: Path, runs: Path = RUNS, fits: Callable[[Path], bool] = holds_bundle) -> str:
    """`did you mean PATH?` for a path that is no run: one of that name below ``runs``, else one named like it.

    Of a run of the demo that isn't there: the command that makes it.

    Args:
        fits: whether a folder can be what is wanted.
    """
    below = runs / place.name if len(place.parts) == 1 else None
    if below is not None and fits(below):
        return f"did you mean {below.as_posix()}?"
    if os.path.exists(place):  # it is spelled right
        return ""
    return mend_of_missing(place, fits) or (mend_of_missing(below, fits) if below is not None else "")


def require_run(place: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        UserError: with the run that was meant, if one is near.
    """
    if not is_run(place):
        if os.path.isdir(place) and (inside := _runs_in(place, is_run)):
            raise UserError(inside)
        if os.path.isdir(place) and is_run(above := place.absolute().parent):
            raise UserError(f"{place} is part of a run; give that: {above}")
        mend = meant_run(place, fits=is_run) or "give the folder that `basic-lite train` wrote, such as runs/NAME"
        raise UserError(f"{place} is no run folder; {mend}")


def _runs_in(place: Path, fits: Callable[[Path], bool]) -> str:
    """What to say of a folder that holds runs; empty: it holds none."""
    inside = sorted(path.name for path in place.glob("*/") if fits(path))
    return f"{place} holds runs and is none: {', '.join(inside)}; give one of them" if inside else ""


def open_bundle(place: Path, key: str = "run folder", runs: Path = RUNS) -> Bundle:
    """Read and verify a bundle.

    Raises:
        UserError: no bundle, a foreign format, or a file whose hash isn't the manifest's.
    """
    return _read(find_bundle(place, key, runs), whole=True)


def look_at_bundle(place: Path, key: str = "run folder", runs: Path = RUNS) -> Bundle:
    """Read a bundle's manifest and recipe. Its weights are neither read nor verified.

    Raises:
        UserError: no bundle, a foreign format, or a changed recipe.
    """
    return _read(find_bundle(place, key, runs), whole=False)


def _read(folder: Path, *, whole: bool) -> Bundle:
    try:
        data = read_file(folder / MANIFEST)
        manifest = read_manifest(data)
        if (version := manifest["format"]) != FORMAT:
            raise UserError(
                f"{folder}: bundle format {version}, this version reads {FORMAT}; use the basic-lite that wrote it"
            )
        files = manifest["files"]
        if not {PROJECTOR, RECIPE_JSON} <= files.keys():
            raise ValueError(f"it lists no {PROJECTOR} or {RECIPE_JSON}")
    except (ValueError, OSError) as error:
        raise UserError(
            f"{folder / MANIFEST} can't be read ({error}): the bundle is damaged. "
            "Take another checkpoint (--checkpoint with --resume)"
        ) from error
    if wrong := _not_as_listed(folder, files, files if whole else [RECIPE_JSON]):
        raise UserError(
            f"the bundle {folder} doesn't hold together: {'; '.join(wrong)}. "
            "Parts of different runs must not be mixed; "
            "restore the files, or take another checkpoint (--checkpoint with --resume)"
        )
    recipe = _recipe_of(folder, manifest)
    if recipe.lora.enabled != (ADAPTER_WEIGHTS in files):
        has = "has" if ADAPTER_WEIGHTS in files else "lists no"
        raise UserError(
            f"{folder} {has} {ADAPTER_WEIGHTS}, and lora.enabled is {str(recipe.lora.enabled).lower()} in its "
            f"{RECIPE_JSON}: the bundle was put together from others; take one as `train` has written it"
        )
    return Bundle(folder, manifest, recipe, hashlib.sha256(data).hexdigest())


def _not_as_listed(folder: Path, files: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Which of the files are missing or were changed."""
    wrong = []
    for name in names:
        path = folder / name
        if not os.path.isfile(path):
            wrong.append(f"{name} is missing")
        elif sha256(path) != files[name]["sha256"]:
            wrong.append(f"{name} was changed (its sha256 isn't the manifest's)")
    return wrong


def require_as_opened(bundle: Bundle, names: Iterable[str]) -> None:
    """Refuse a bundle that is another one by now: a run that goes on replaces its best step and deletes checkpoints.

    Args:
        names: its files that were read.

    Raises:
        UserError: one isn't what it was.
    """
    if wrong := _not_as_listed(bundle.folder, bundle.manifest["files"], names):
        raise UserError(
            f"{bundle.folder} was replaced or deleted while it was read ({wrong[0]}), as by a run that goes on; give "
            "the command again"
        )


def _recipe_of(folder: Path, manifest: dict[str, Any]) -> Recipe:
    try:
        recipe = Recipe.model_validate_json(read_text(folder / RECIPE_JSON))
        models = [recipe.model.base is not None, recipe.model.vision is not None, recipe.model.llm is not None]
    except ValidationError as error:
        raise UserError(
            f"{folder / RECIPE_JSON} has other keys than this version of basic-lite ({__version__}); the bundle is of "
            f"{manifest.get('basic_lite', 'an unknown version')}: use that one ({first_problem(error)})"
        ) from error
    if models not in ([True, False, False], [False, True, True]):
        raise UserError(
            f"{folder / RECIPE_JSON} names no model, or too many: a bundle's recipe has model.base, or model.vision "
            "and model.llm. Restore the file, or take another bundle"
        )
    return recipe


def require_checkpoint(bundle: Bundle) -> None:
    """Refuse a bundle that a run can't continue from.

    Raises:
        UserError: an older version's checkpoint, or a bundle without training state.
    """
    if not {OPTIMIZER, GENERATORS, TRAINING} <= bundle.manifest["files"].keys():
        older = TRAINER_STATE in bundle.manifest["files"]
        why = (
            f"was written by basic-lite {bundle.manifest.get('basic_lite', '0.1.0')}, "
            "which kept its training state in pickle files; "
            "continue with that version, or start a new run with name=… and model.projector"
            if older
            else "holds no training state; take another checkpoint with --checkpoint, or start a new run with name=…"
        )
        raise UserError(f"--resume: {bundle.folder} {why}")


def copy_model(bundle: Bundle, folder: Path, facts: dict[str, Any]) -> None:
    """Copy a checkpoint's model into a scratch folder, without what is needed to continue.

    Args:
        facts: more facts for the manifest.
    """
    left_out = {OPTIMIZER, GENERATORS, TRAINING}
    files = {name: about for name, about in bundle.manifest["files"].items() if name not in left_out}
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / name)
    write_json(folder / MANIFEST, {**bundle.manifest, **facts, "files": files})
