"""Write one bundle as a llava-hf folder."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from basic_lite.data.chat import ChatFormat
from basic_lite.errors import UserError
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import pick_dtype
from basic_lite.tools.export.files import write_files
from basic_lite.tools.export.merge import Merge, MergeInto, grow_config
from basic_lite.tools.export.tensors import write_shards
from basic_lite.tools.model_place import may_be_on_the_hub
from basic_lite.tools.runs import is_running
from basic_lite.training.bundle import note_changed_files, require_same_model
from basic_lite.training.bundle_files import Bundle, open_bundle, require_as_opened
from basic_lite.training.places import MANIFEST

ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Source:
    """A bundle with what is read of its models before their weights."""

    bundle: Bundle
    frontend: Frontend
    chat: ChatFormat
    merge: Merge
    dtype: torch.dtype
    changed: bool  # whether files of its base models were changed since it was trained

    @property
    def parameters(self) -> int:
        """Exported weights, as numbers."""
        return sum(tensor.parameters for tensor in self.merge.plan(self.dtype))

    @property
    def size_bytes(self) -> int:
        """Bytes of the exported weights."""
        return sum(tensor.size_bytes for tensor in self.merge.plan(self.dtype))


def open_source(run: Path, merge_into: MergeInto | None, dtype: ExportDtype, device: torch.device) -> Source:
    """Open what is to be exported, and see that all of it is there. Nothing is written.

    Args:
        run: a finished run's folder, or a bundle.
        merge_into: None: what training computed with, NF4 where it quantised.
        dtype: ``auto``: the type of the LLM's table of words in its checkpoint.

    Raises:
        UserError: the run isn't finished, a base model is missing or another one, …
    """
    bundle = _finished_bundle(run)
    recipe = bundle.recipe
    frontend = load_frontend(recipe.model)
    require_same_model(bundle, frontend.config, str(run))
    changed = note_changed_files(bundle)
    config = copy.deepcopy(frontend.config)
    grow_config(config)
    frontend = replace(frontend, config=config)
    # A template without questions, as in stage 1, stays what it is: the export does what the model has learnt.
    chat = ChatFormat(recipe.data.template, frontend.tokenizer, frontend.image_token_id, frontend.tokens_per_image)
    default: MergeInto = "original" if recipe.quantization.mode == "none" else "quantized"
    merge = Merge(bundle, config, merge_into or default, device)
    chosen = merge.base_dtype if dtype == "auto" else pick_dtype(dtype, device)
    return Source(bundle, frontend, chat, merge, chosen, changed)


def _finished_bundle(run: Path) -> Bundle:
    _require_run(run)
    bundle = open_bundle(run)
    total = int(bundle.manifest["total_steps"])
    if bundle.folder != run and bundle.step < total:
        finish = (
            "It trains now: wait until it ends" if is_running(run) else "Finish it with `basic-lite train … --resume`"
        )
        raise UserError(
            f"{run} isn't finished: its newest checkpoint is of step {bundle.step} of {total}. {finish}, or name the "
            f"checkpoint: {bundle.folder}"
        )
    return bundle


def _require_run(run: Path) -> None:
    """Refuse a model of transformers, on disk or on the hub: there is nothing in it to merge."""
    known = (run / "config.json").is_file() and not (run / MANIFEST).is_file()
    if known or may_be_on_the_hub(run.as_posix()):
        here = "is a model as transformers reads it" if known else "is no folder here, but may be a name on the hub"
        raise UserError(
            f"{run} {here}: export takes a run of basic-lite and writes it as such a model; give a run folder "
            "(runs/NAME), or ask the model as it is with `basic-lite chat`"
        )


def write_settings(folder: Path, source: Source) -> None:
    """Write all but the weights: configurations, tokenizer and processor."""
    write_files(folder, source.frontend, source.chat, source.bundle.recipe.data.image_fit, source.dtype)


def write_weights(folder: Path, source: Source, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write the weights.

    Peak extra bytes: ``tensors.SHARD_BYTES``, and three float32 copies of the largest weight.

    Raises:
        UserError: the bundle was replaced meanwhile, so that they are of two models.
    """
    write_shards(folder, source.merge.plan(source.dtype), source.merge.tensor, progress)
    require_as_opened(source.bundle, source.bundle.weights)
