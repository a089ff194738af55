"""What ``basic-lite inspect`` does: open the model, make samples, look, and print."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from basic_lite.console import counting, note, quiet_libraries
from basic_lite.data.images import ImageRef
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError, enough_memory
from basic_lite.model.device import tell_device, warn_of_slow_types
from basic_lite.model.load import pick_device, pick_dtype
from basic_lite.printable import printable
from basic_lite.recipe.schema import SourceSection
from basic_lite.sizes import number_of
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.layout import TextQueries
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.data_argument import data_source
from basic_lite.tools.inspect.conversations import DESCRIBED, SAMPLES, Conversations
from basic_lite.tools.inspect.facts import facts_of, training_of
from basic_lite.tools.inspect.look import Inspection, look
from basic_lite.tools.inspect.maps import WantedMaps, folder_maps
from basic_lite.tools.inspect.of_folder import MEND, open_model, planned_parts, read_family
from basic_lite.tools.inspect.of_run import OpenRun
from basic_lite.tools.inspect.table import show_inspection
from basic_lite.tools.model_argument import require_model
from basic_lite.tools.model_place import is_run
from basic_lite.training.maps import run_maps

_DESCRIBED = f"each picture's text is the model's own description of it (its likeliest words, {DESCRIBED} at most)"


def inspect(
    model: str,
    pictures: Sequence[str] = (),
    *,
    data: Path | None = None,
    image_dir: Path | None = None,
    samples: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "none",
    maps: Path | None = None,
    layers: str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> Inspection:
    """Look into a model and print what was found.

    Args:
        model: run folder, bundle, folder that transformers reads, or hub name.
        pictures: what is looked at, with the model's own descriptions for texts.
        data: instead of pictures, samples with texts. Neither: a run's own samples; of another model no weight is read.
        samples: how many of the data; None: 64, or as many as the run looks at.
        dtype, quantization: of a model that isn't a run.
        maps: folder for token maps of the first samples.
        layers: numbers of the layers whose words these show.

    Raises:
        UserError: no such model, one of an unknown family, data that can't be read, or maps that can't be written.
    """
    quiet_libraries()
    require_model(model, "inspect")
    if data is not None and pictures:
        raise UserError("give pictures or --data, one of both: with --data the pictures are those of the data")
    # A run has data of its own.
    own = not pictures and is_run(model)
    if data is None and (image_dir is not None or (samples is not None and not own)):
        raise UserError("--image-dir and --samples belong to --data; leave them out, or add it")
    source = None if data is None else data_source(data, image_dir=image_dir)
    shown = WantedMaps.of(maps, layers, looks=bool(pictures) or data is not None or is_run(model))
    wanted = _Wanted([picture(name) for name in pictures], data, source, samples, shown)
    if is_run(model):
        if (dtype, quantization) != ("auto", "none"):
            raise UserError(
                f"--dtype and --quantization are for other models; {model} is a run, and its recipe has both"
            )
        found = _of_run(Path(model).expanduser(), wanted, device)
    else:
        folder = Path(model).expanduser()
        found = _of_folder(str(folder) if folder.exists() else model, wanted, device, dtype, quantization)
    console = console or Console(highlight=False)
    if as_json:
        console.print(json.dumps(found.to_dict(), indent=1), soft_wrap=True, markup=False, highlight=False, emoji=False)
    else:
        show_inspection(found, console)
    return found


@dataclass(frozen=True)
class _Wanted:
    """What is looked at: pictures, or data; neither."""

    images: list[ImageRef]
    data: Path | None
    source: SourceSection | None  # that the data is
    samples: int | None
    maps: WantedMaps

    def text(self, count: int) -> str:
        """What was looked at, in words."""
        if self.images:
            return f"{number_of(count, 'picture')}; {_DESCRIBED}"
        whose = "the run's own data" if self.data is None else printable(self.data.name)
        return f"{number_of(count, 'sample')} of {whose}"

    def names(self, first: int, count: int) -> list[str]:
        """Of ``count`` samples from number ``first`` on, of a run."""
        if self.images:
            return [image.name for image in self.images[first : first + count]]
        return [f"sample {n}" for n in range(first + 1, first + count + 1)]


def _of_run(place: Path, wanted: _Wanted, device: str) -> Inspection:
    where = pick_device(device, "--device")
    tell_device(where, device, note)
    run = OpenRun.of(place, where)
    with run.autocast(), enough_memory("give --device cpu"):
        supervision = run.supervision(note)
        layers, queries = wanted.maps.chosen(supervision), supervision.settings.text_queries
        batches = run.described(wanted.images) if wanted.images else run.batches(wanted.source, wanted.samples, note)
        with counting(Console(stderr=True), "looking", len(batches)) as advance:
            kept = wanted.maps.over(moved(batches, run.device), wanted.names)
            seen = look(supervision, _counted(kept, advance), run.loaded.tokenizer)
        tokens = float(run.loaded.frontend.tokens_per_image)
        found = Inspection(run.facts(), wanted.text(seen.curve.samples), (tokens, tokens), seen)
        wanted.maps.write(
            lambda batch, names: run_maps(run.loaded, supervision, batch, names, queries, layers), found, note
        )
    return found


def _of_folder(name: str, wanted: _Wanted, device: str, dtype: str, quantization: str) -> Inspection:
    config, family = read_family(name)
    trained, refused = training_of(name, family)
    facts = facts_of(
        name, family, planned_parts(config, family, name), config, trained_with=trained, not_trained=refused
    )
    if not wanted.images and wanted.source is None:
        note("no weight was read: whether the premise holds is measured on pictures, or on --data FILE")
        return Inspection(facts, "", None, None)
    records = None if wanted.source is None else load_records(wanted.source, root=Path.cwd())
    where = pick_device(device, "--device")
    tell_device(where, device, note, dtype=pick_dtype(dtype, where))
    warn_of_slow_types(where, {"--dtype float32": pick_dtype(dtype, where)}, note)
    with enough_memory(MEND):
        opened = open_model(name, family, where, dtype, quantization)
        batches: Iterable[dict[str, Tensor]]
        made, supervision = Conversations(opened), opened.supervision(note)
        layers = wanted.maps.chosen(supervision)
        if records is None:
            said = [made.described(image) for image in wanted.images]
            count, batches = len(said), map(made.sample, said)
        else:
            count = min(wanted.samples or SAMPLES, len(records))
            batches = made.samples(records, count, note)
        queries: TextQueries = "response" if family.prefix else "all"
        with counting(Console(stderr=True), "looking", count) as advance:
            kept = wanted.maps.over(batches, lambda first, count: made.names)
            seen = look(supervision, _counted(kept, advance), opened.tokenizer, queries)
        found = Inspection(facts, wanted.text(seen.curve.samples), (min(made.tokens), max(made.tokens)), seen)
        wanted.maps.write(partial(folder_maps, opened, supervision, layers, queries), found, note)
    return found


def _counted(batches: Iterable[Mapping[str, Tensor]], advance: Callable[[int], None]) -> Iterator[Mapping[str, Tensor]]:
    for batch in batches:
        yield batch
        advance(1)
