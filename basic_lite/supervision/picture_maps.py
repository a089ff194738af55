"""Token maps laid over pictures, in words and numbers that any page can show and a JSON file can hold."""

import base64
import binascii
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field, TypeAdapter
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from basic_lite.data.images import ImageRef, open_image
from basic_lite.data.problems import BadImage
from basic_lite.model.families.views import View, first_tokens
from basic_lite.supervision.layout import TextQueries
from basic_lite.supervision.supervision import Supervision
from basic_lite.supervision.token_maps import TokenMaps
from basic_lite.supervision.words import Words

# Pixels of a picture's longer side.
SIDE = 336
_URI = "data:image/jpeg;base64,"
# A page shows at most so many tokens of one picture, and so many characters of its text.
_MOST_TOKENS, _MOST_TEXT = 20_000, 600
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_WHOSE: dict[TextQueries, str] = {
    "all": "the text after the picture",
    "prompt": "the question",
    "response": "the answer",
}


@dataclass(frozen=True)
class PictureMaps:
    """What BASIC sees in one picture, or in one part of it.

    Attributes:
        name: the picture's.
        part: which part of it; empty: all of it.
        text: what stands around the picture.
        picture: a data URI of a JPEG, as the vision tower gets it; empty: it isn't known where the tokens lie.
        rows, columns: of the grid of tokens; 0 rows: it isn't known, and ``columns`` tokens are listed.
        places: v, layers h…, target.
        words: [place][token], row by row.
        in_text: [place], the tokens whose word stands in ``text``.
        attention: a_i [token]; None: it can't be read.
        whose: whose attention that is, in words.
        attended: layers that it is the mean of.
        sinks: the tokens that are sinks.
        trace: mean of cos(v, ṽ_h) over tokens, and between what ends eight of ten tokens lie, for h = 1..L and v̂.
        layers: K, that v̂ is made of.
        number: of the picture among those that are shown with it, from 0; its parts have the same one.
    """

    name: str
    part: str
    text: str
    picture: str
    rows: int
    columns: int
    places: list[str]
    words: list[list[str]]
    in_text: list[list[int]]
    attention: list[_Finite] | None
    whose: str
    attended: int
    sinks: list[int]
    trace: list[tuple[_Finite, _Finite, _Finite]]
    layers: int
    number: int = 0  # older files have none

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return max(self.rows, 1) * self.columns

    @property
    def mass(self) -> float:
        """Σ a_i."""
        return sum(self.attention or [])

    def image(self) -> Image.Image:
        """The picture, RGB."""
        return _opened(self.picture)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "PictureMaps":
        """What ``to_dict`` gave, perhaps changed by a person.

        Raises:
            ValueError: it isn't whole.
        """
        found = TypeAdapter(cls).validate_python(given)
        tokens = found.tokens
        if not 0 < tokens <= _MOST_TOKENS or not _is_jpeg(found.picture) or (found.rows and not found.picture):
            raise ValueError("no picture with a grid")
        lengths = {*map(len, found.words), tokens if found.attention is None else len(found.attention)}
        if lengths != {tokens} or not len(found.words) == len(found.places) == len(found.in_text):
            raise ValueError("as many words as tokens")
        if len(found.trace) < 2:
            raise ValueError("a layer and v̂")
        if not all(0 <= token < tokens for some in (*found.in_text, found.sinks) for token in some):
            raise ValueError("no token")
        return found


def _is_jpeg(uri: str) -> bool:
    """Whether a data URI is a whole picture, or empty."""
    if not uri:
        return True
    if not uri.startswith(_URI):
        return False
    try:
        _opened(uri)
    except (binascii.Error, BadImage):
        return False
    return True


def _opened(uri: str) -> Image.Image:
    return open_image(ImageRef("a picture of the maps", blob=base64.b64decode(uri.removeprefix(_URI), validate=True)))


def picture_maps(
    maps: TokenMaps,
    views: Sequence[View] | None,
    supervision: Supervision,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    batch: Mapping[str, Tensor],
    *,
    names: Sequence[str],
    text_queries: TextQueries,
) -> list[PictureMaps]:
    """The maps of a batch, view by view; sample by sample where the views aren't known.

    Args:
        views: of the whole batch, as its family gives them.
        image_processor: for the pixels' mean and range.
        batch: for the texts.
        names: one of each sample; of a batch with one sample, of each of its pictures. Where they can't be told apart,
            the maps have all the sample's names.
    """
    layout, tokens = maps.layout, maps.words.shape[1]
    firsts = None if views is None else first_tokens(views, tokens)
    words = Words(tokenizer, {*supervision.special_ids.tolist(), *tokenizer.all_special_ids})
    rows = layout.rows_with_image.tolist()
    around = {row: batch["input_ids"][row].cpu()[layout.valid[row] & ~layout.visual[row]].tolist() for row in rows}
    of_pictures = len(rows) == 1 and views is not None and len({view.picture for view in views}) == len(names)

    def of(where: range, number: int, row: int, view: View | None) -> PictureMaps:
        picture, chosen = "", torch.tensor(where)
        if len(rows) > 1:
            name = names[rows.index(row)]
        else:
            name = names[number] if view is not None and of_pictures else ", ".join(names)
        ids, own = maps.words[:, chosen].tolist(), set(words.of(around[row])) - {""}
        if view is not None:
            picture = as_jpeg(view.pixels, image_processor)
        trace = maps.cos[:, chosen].double()
        ends = trace.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64), dim=1).T.tolist()
        return PictureMaps(
            name=name,
            part="" if view is None else view.part,
            text=" ".join(tokenizer.decode(around[row], skip_special_tokens=True).split())[:_MOST_TEXT],
            picture=picture,
            rows=0 if view is None else view.rows,
            columns=len(where) if view is None else view.columns,
            places=maps.places,
            words=[[shown_word(tokenizer, i) for i in place] for place in ids],
            in_text=[[n for n, word in enumerate(words.of(place)) if word in own] for place in ids],
            attention=None if maps.attention is None else maps.attention[chosen].tolist(),
            whose=_WHOSE[text_queries],
            attended=maps.attended,
            sinks=maps.sinks[chosen].nonzero().flatten().tolist(),
            trace=[(mean, low, high) for mean, (low, high) in zip(trace.mean(dim=1).tolist(), ends, strict=True)],
            layers=maps.layers,
            number=number,
        )

    if firsts is None or views is None:
        counts = layout.patches[layout.rows_with_image].tolist()
        places = [range(end - count, end) for count, end in zip(counts, itertools.accumulate(counts), strict=True)]
        return [of(where, n, row, None) for n, (where, row) in enumerate(zip(places, rows, strict=True))]
    found = []
    for first, view in zip(firsts, views, strict=True):
        where = range(first, first + view.rows * view.columns)
        found.append(of(where, view.picture, int(layout.sample[first]), view))
    return found


def as_jpeg(pixels: Tensor, image_processor: Any) -> str:
    """A data URI of a picture [3, H, W] as a vision tower gets it, brought back to colours and to ``SIDE`` pixels."""
    values = pixels.detach().float().cpu()
    if getattr(image_processor, "do_normalize", True):
        mean, std = (torch.as_tensor(getattr(image_processor, key)).float() for key in ("image_mean", "image_std"))
        values = values * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    scale = 255.0 if getattr(image_processor, "do_rescale", True) else 1.0
    bytes_ = (values * scale).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(bytes_)
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image.resize(size, Image.Resampling.BICUBIC).save(data := io.BytesIO(), "JPEG", quality=85)
    return _URI + base64.b64encode(data.getvalue()).decode("ascii")


def shown_word(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as a person reads it; its name in the vocabulary where it has no visible text."""
    text = str(tokenizer.decode([token_id])).strip()
    return text if text and text.isprintable() else str(tokenizer.convert_ids_to_tokens(token_id))
