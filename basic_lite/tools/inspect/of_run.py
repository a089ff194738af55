"""A run of ours, looked into on its own samples as it looks itself, or on other data in its own format."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basic_lite.console import Say, command_line
from basic_lite.data.batches import Collator
from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.prepare import prepare_data
from basic_lite.data.prompts import with_prompts_of_training
from basic_lite.data.records import Record, Turn
from basic_lite.errors import UserError
from basic_lite.model.families.llava import LLAVA
from basic_lite.model.load import Loaded
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.supervision import Supervision
from basic_lite.tools.inspect.conversations import DESCRIBED, QUESTION, SAMPLES
from basic_lite.tools.inspect.facts import Facts, facts_of
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.assembly import autocast_of
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import Bundle
from basic_lite.training.data_json import broken_at_start
from basic_lite.training.maps import reading_supervision
from basic_lite.training.places import RECIPE_YAML
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH, curve_batches

# A description costs a generation for each picture.
_AT_ONCE = 4


@dataclass(frozen=True)
class OpenRun:
    """A run's model with its adapter and projector."""

    name: str
    loaded: Loaded
    bundle: Bundle

    @classmethod
    def of(cls, place: Path, device: torch.device) -> "OpenRun":
        """Open a run folder or a bundle.

        Raises:
            UserError: no usable bundle.
        """
        return cls(str(place), *load_trained(place, device))

    @property
    def recipe(self) -> Recipe:
        """The run's own."""
        return self.bundle.recipe

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.loaded.parts.device

    def facts(self) -> Facts:
        """What the model is made of."""
        config = self.loaded.model.config
        # The run's own recipe lies beside its bundles.
        recipe = self.bundle.folder.parent / RECIPE_YAML
        written = str(recipe) if recipe.is_file() else "RECIPE"
        trained = command_line(["basic-lite", "train", written, f"model.start={self.name}", "name=NEW"])
        return facts_of(self.name, LLAVA, self.loaded.parts, config, trained_with=trained, not_trained="")

    def supervision(self, say: Say) -> Supervision:
        """The run's own, with the target that it had at its end; on, whatever the recipe says."""
        return reading_supervision(self.loaded, self.recipe.supervision, self.bundle.manifest.get("target"), say)

    def autocast(self) -> AbstractContextManager[Any]:
        """What the run's forwards were under."""
        return autocast_of(self.recipe, self.device)()

    def batches(self, data: SourceSection | None, samples: int | None, say: Say) -> list[dict[str, Tensor]]:
        """Batches of samples with pictures, on the host: those that the run itself looks at, or those of other data.

        Args:
            data: None: the run's own.
            samples: None: as many as the run looks at.

        Raises:
            UserError: the data can't be read, or has no picture.
        """
        recipe, broken = self.recipe, None
        if data is None:
            broken = broken_at_start(self.bundle.folder.parent) if recipe.data.bad_records == "drop" else None
        else:
            source = with_prompts_of_training(data, recipe.data)
            changed = {"data.train": source, "data.eval": None, "data.held_out": None, "data.bad_records": "drop"}
            recipe = changed_recipe(recipe, changed)
        own = recipe.supervision.refinement_batches or SAMPLES // SAMPLES_PER_BATCH
        wanted = own if samples is None else math.ceil(samples / SAMPLES_PER_BATCH)
        recipe = changed_recipe(recipe, {"supervision.refinement_batches": wanted})
        try:
            prepared = prepare_data(recipe, self.loaded.frontend, say=say, shown=False, broken=broken)
        except UserError as error:
            if data is not None:
                raise
            raise UserError(
                f"the run's own data can't be read any more ({error}); name other data with --data"
            ) from error
        batches = prepared.batches_with_images(*curve_batches(recipe))
        if not batches:
            raise UserError("the data has no record with a picture that can be read, so there is nothing to look at")
        return batches

    def described(self, images: Sequence[ImageRef]) -> list[dict[str, Tensor]]:
        """Batches of pictures with the model's own descriptions, its likeliest words.

        Raises:
            RecordProblem: a picture can't be read.
        """
        chat, fit = chat_format(self.recipe, self.loaded.frontend), self.recipe.data.image_fit
        asked = [
            Record(n, "", one.name, (one,), (Turn("human", f"<image>\n{QUESTION}"),)) for n, one in enumerate(images)
        ]
        with self.autocast():
            texts = answer(self.loaded, chat, asked, image_fit=fit, batch_size=_AT_ONCE, max_new_tokens=DESCRIBED)
        collate, processor = Collator(int(self.loaded.tokenizer.pad_token_id)), self.loaded.frontend.image_processor
        batches = []
        for record, text in zip(asked, texts, strict=True):
            said = Record(record.number, "", record.source, record.images, (*record.turns, Turn("gpt", text or "-")))
            encoded = chat.encode(said, 2**31)
            pixel_values = pixels(record.images, processor, fit)
            batches.append(
                collate([{"input_ids": encoded.input_ids, "labels": encoded.labels, "pixel_values": pixel_values}])
            )
        return batches
