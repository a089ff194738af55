"""Token maps of a run: of any batch of its records, and of a few held-out pictures for its report."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from basic_lite.console import Say
from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.pixel_table import on_device
from basic_lite.data.prepare import Prepared
from basic_lite.data.problems import RecordProblem
from basic_lite.model.families.llava import picture_views
from basic_lite.model.load import Loaded
from basic_lite.outside import as_object
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.supervision import Supervision, choose_kernels
from basic_lite.supervision.layout import TextQueries
from basic_lite.supervision.picture_maps import PictureMaps, picture_maps
from basic_lite.supervision.token_maps import measure_maps, shown_layers
from basic_lite.training.assembly import autocast_of, supervision_of
from basic_lite.training.files import saving, write_json
from basic_lite.training.log import FIX
from basic_lite.training.log_lines import lines_of
from basic_lite.training.places import MAPS, read_json
from basic_lite.training.refinement_log import if_memory_allows

# Pictures of a run whose maps are kept, and records that are looked through for as many different ones.
KEPT, SEARCHED = 3, 60


def reading_supervision(
    loaded: Loaded, settings: SupervisionSection, target: Mapping[str, Any] | None, say: Say
) -> Supervision:
    """BASIC on a model that is looked at, and not trained: on, whatever its recipe says.

    Args:
        settings: of its recipe.
        target: what the run had chosen of the target, as its manifest has it; None: nothing.

    Raises:
        UserError: the vocabulary table can't be used, or the target is of another model.
    """
    operations, _ = choose_kernels("auto", loaded.parts.device, say)
    # A number: attention is read apart, where it can be.
    settings = settings.model_copy(update={"enabled": True, "token_weights": 1.0})
    supervision = supervision_of(loaded, settings, operations)
    if target:
        supervision.use_saved(target, "the run's manifest.json")
    return supervision


def run_maps(
    loaded: Loaded,
    supervision: Supervision,
    batch: Mapping[str, Tensor],
    names: Sequence[str],
    text_queries: TextQueries,
    layers: Collection[int] | None = None,
) -> list[PictureMaps]:
    """The maps of a batch, on the model's device, of a model that basic-lite trains.

    Args:
        names: see ``picture_maps``.
        layers: whose words are looked up; None: some from 1 to K.
    """
    chosen = shown_layers(supervision.layers) if layers is None else layers
    frontend = loaded.frontend
    return picture_maps(
        measure_maps(supervision, batch, chosen, text_queries),
        picture_views(frontend.config, batch) if "pixel_values" in batch else None,
        supervision,
        loaded.tokenizer,
        frontend.image_processor,
        batch,
        names=names,
        text_queries=text_queries,
    )


@dataclass(frozen=True)
class ReportMaps:
    """Measures the maps of a few pictures and keeps them in the run's folder, for its report.

    The pictures are the first ones that were held out; of a run that holds out none, the first that it trains on.
    """

    recipe: Recipe
    loaded: Loaded
    data: Prepared
    supervision: Supervision | None  # the run's own; None: BASIC is off
    folder: Path
    say: Say

    def write(self) -> None:
        """Measure and write, once after each step that the report is written after.

        Raises:
            UserError: the vocabulary table can't be used, or the file can't be written.
        """
        step = max((line["step"] for line in lines_of(self.folder)), default=0)
        path = self.folder / MAPS
        if as_object(read_json(path)).get("step") == step:
            return
        supervision = self.supervision
        if supervision is None or not supervision.active:
            supervision = reading_supervision(self.loaded, self.recipe.supervision, None, self.say)
        device = supervision.device
        found = if_memory_allows(
            lambda: [one for batch, names in self._samples() for one in self._maps(supervision, batch, names)],
            autocast_of(self.recipe, device),
            lambda: self.say("warning: not enough memory for the report's token maps; they are left out"),
        )
        held_out = self.data.eval is not None
        with saving(path, FIX):
            kept = {"step": step, "held_out": held_out, "pictures": [one.to_dict() for one in found or []]}
            write_json(path, kept)

    def _maps(self, supervision: Supervision, batch: Mapping[str, Tensor], names: Sequence[str]) -> list[PictureMaps]:
        there = on_device(batch, supervision.device)
        return run_maps(self.loaded, supervision, there, names, supervision.settings.text_queries)[:1]

    def _samples(self) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        """Batches of one sample, each with another picture, and the pictures' names."""
        data: SupervisedDataset = self.data.train if self.data.eval is None else self.data.eval
        seen: set[tuple[str, ...]] = set()
        for index in range(min(len(data), SEARCHED)):
            with suppress(RecordProblem):  # one that broke meanwhile; the run itself says so
                names = tuple(image.name for image in data.record(index).images)
                if names and names not in seen:
                    batch = self.data.collator([data[index]])
                    seen.add(names)
                    yield batch, list(names)
            if len(seen) == KEPT:
                return
