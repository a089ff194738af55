"""``inspect --maps``: the token maps of the first samples that are looked at."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.model.families.views import View
from basic_lite.sizes import number_of
from basic_lite.supervision import Supervision
from basic_lite.supervision.layout import TextQueries
from basic_lite.supervision.picture_maps import PictureMaps, picture_maps
from basic_lite.supervision.token_maps import measure_maps, shown_layers
from basic_lite.tools.inspect.look import Inspection
from basic_lite.tools.inspect.of_folder import OpenModel
from basic_lite.tools.maps.page import require_own_folder, write_folder

# Samples whose maps are made at most: each takes some hundred kilobytes of the page.
MOST = 12
# Below the curve's numbers on the page.
CURVE = (
    "The refinement curve has this score at v, after each layer and at v̂: the share of visual tokens whose nearest "
    "word stands in their own text, minus that share for the texts of other pictures. BASIC can help only if v̂ scores "
    "higher than v."
)
# The maps of a batch, from the names of its pictures.
Measure = Callable[[Mapping[str, Tensor], Sequence[str]], list[PictureMaps]]


@dataclass
class WantedMaps:
    """Where maps go, and which layers' words they show; then the samples that pass."""

    folder: Path | None  # None: no maps are wanted
    layers: list[int] | None  # None: some from 1 to K
    _batches: list[tuple[Mapping[str, Tensor], list[str]]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path | None, layers: str | None, *, looks: bool) -> "WantedMaps":
        """From the command's options.

        Args:
            looks: samples are looked at.

        Raises:
            UserError: they don't go together, or the folder holds something else.
        """
        if folder is None:
            if layers is not None:
                raise UserError("--layers says whose words --maps shows; add --maps FOLDER, or leave it out")
            return cls(None, None)
        if not looks:
            raise UserError("--maps shows what a model makes of pictures; name some, or --data FILE")
        require_own_folder(folder.expanduser())
        return cls(folder.expanduser(), None if layers is None else _numbers(layers))

    def chosen(self, supervision: Supervision) -> list[int]:
        """The layers whose words are shown.

        Raises:
            UserError: the LLM has no such layer.
        """
        total = len(supervision.parts.layers)
        for h in self.layers or []:
            if not 1 <= h <= total:
                raise UserError(f"--layers: there is no layer {h}; this LLM has layers 1 to {total}")
        return shown_layers(supervision.layers) if self.layers is None else self.layers

    def over(
        self, batches: Iterable[Mapping[str, Tensor]], names: Callable[[int, int], Sequence[str]]
    ) -> Iterator[Mapping[str, Tensor]]:
        """The batches; the first samples are kept.

        Args:
            names: of a batch's pictures, from the number of samples before it and in it. Called once it is made.
        """
        count = 0
        for batch in batches:
            size = len(batch["input_ids"])
            if self.folder is not None and count < MOST:
                self._batches.append((batch, list(names(count, size))))
            count += size
            yield batch

    def write(self, measure: Measure, found: Inspection, say: Say) -> None:
        """Measure and write, where maps are wanted.

        Raises:
            UserError: the files can't be written.
        """
        if self.folder is None:
            return
        maps: list[PictureMaps] = []
        for batch, names in self._batches:
            before = maps[-1].number + 1 if maps else 0
            maps += [replace(one, number=before + one.number) for one in measure(batch, names)]
        facts = [found.facts.family, found.samples]
        if found.look is not None:
            facts += [f"v̂ is made of layers 1 to {found.look.supervised}", found.look.curve.summary(), CURVE]
        page = write_folder(self.folder, Path(found.facts.name).name, facts, maps)
        kept, seen = sum(len(batch["input_ids"]) for batch, _ in self._batches), 0
        if found.look is not None:
            seen = found.look.curve.samples
        rest = f", the first of {seen}" if seen > kept else ""
        say(f"token maps of {number_of(kept, 'sample')}{rest}: {page}, and a PNG file of each picture beside it")


def _numbers(text: str) -> list[int]:
    parts = re.split(r"[,\s]+", text.strip())
    if not all(re.fullmatch(r"[0-9]{1,4}", part) for part in parts):
        raise UserError(f"--layers: {text!r} is no list of layers; write their numbers, such as --layers 1,6,12")
    return sorted({int(part) for part in parts})


def folder_maps(
    opened: OpenModel,
    supervision: Supervision,
    layers: Sequence[int],
    text_queries: TextQueries,
    batch: Mapping[str, Tensor],
    names: Sequence[str],
) -> list[PictureMaps]:
    """The maps of a batch of a model of transformers."""
    return picture_maps(
        measure_maps(supervision, batch, layers, text_queries),
        _views(opened, batch),
        supervision,
        opened.tokenizer,
        opened.processor.image_processor,
        batch,
        names=names,
        text_queries=text_queries,
    )


def _views(opened: OpenModel, batch: Mapping[str, Tensor]) -> list[View] | None:
    """None: where the tokens lie isn't known. A processor may be set to give inputs that nobody has thought of."""
    try:
        return opened.family.views(opened.parts.model.config, batch)
    except (KeyError, RuntimeError, ValueError):
        return None
