"""What BASIC sees in a batch, token by token: nearest words, attention, sinks, and how far each layer turns v.

One forward, for the maps of the chat's page, of ``inspect`` and of a run's report.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from basic_lite.errors import UserError
from basic_lite.supervision.attention import WatchedAttention, check_attention
from basic_lite.supervision.layout import Layout, TextQueries, find_layout
from basic_lite.supervision.patch_weights import patch_weights, sinks
from basic_lite.supervision.supervision import Supervision
from basic_lite.supervision.taps import Capture, evaluating, watch_layers
from basic_lite.supervision.text_attention import layer_mass

# Layers whose words are shown, where nobody has chosen.
SHOWN_LAYERS = 4


@dataclass(frozen=True)
class TokenMaps:
    """The visual tokens of a batch, sample by sample as ``Layout`` packs them; all on the host."""

    layout: Layout
    layers: int  # K, that v̂ is made of
    places: list[str]  # of ``words``: v, layers h…, target
    words: Tensor  # [P, M] int64, ids of the nearest words
    attention: Tensor | None  # a_i, [M] float32: mean over text, heads and ``attended`` layers; None: can't be read
    attended: int  # layers of 1..K that have a plain softmax
    sinks: Tensor  # [M] bool: longer than SINK_MULTIPLE times the median of their sample, after some layer of 1..K
    cos: Tensor  # [L + 1, M] float32: cos(v, ṽ_h) for h = 1..L, and cos(v, v̂)


def shown_layers(layers: int) -> list[int]:
    """Some layers from 1 to K, spread evenly."""
    return sorted({round(h) for h in torch.linspace(1, layers, min(SHOWN_LAYERS, layers)).tolist()})


@torch.no_grad()
def measure_maps(
    supervision: Supervision, batch: Mapping[str, Tensor], layers: Collection[int], text_queries: TextQueries
) -> TokenMaps:
    """Measure in one forward. v̂ is the target that ``supervision`` has now.

    A layer's words are those of its output without its massive dimensions, where these are known; its cosine and its
    sinks are those of the output as it is. Modes of modules are put back; generators and gradients aren't touched.

    Peak extra bytes: about 4·D for each visual token, four times, and what the search for words needs.

    Args:
        batch: on the model's device, with a picture; wrap the call in the autocast that a run trained with.
        layers: whose words are looked up, of 1..L.
        text_queries: whose attention a_i is.
    """
    parts = supervision.parts
    layout = find_layout(batch, parts.image_token_id, text_queries)
    seen = _Seen(supervision, layout.to(supervision.device), frozenset(layers))
    with evaluating(parts.model):
        if parts.layer_inputs or _readable(supervision):
            read = WatchedAttention(parts.language_model, parts.layers[: supervision.layers])
            with read.watching(seen.keep_attention):
                watch_layers(parts, batch, seen.keep_layer, seen.keep_v)
        else:
            watch_layers(parts, batch, seen.keep_layer, seen.keep_v)
    return seen.maps(layout)


def _readable(supervision: Supervision) -> bool:
    try:
        check_attention(supervision.parts.language_model, supervision.layers)
    except UserError:
        return False
    return True


@dataclass
class _Seen:
    """What the hooks of one forward keep."""

    supervision: Supervision
    layout: Layout  # on the model's device
    layers: frozenset[int]
    mass: Tensor | None = None  # [B, T]
    attended: int = 0
    norms: list[Tensor] = field(default_factory=list)
    cos: list[Tensor] = field(default_factory=list)
    words: dict[int, Tensor] = field(default_factory=dict)
    _given: list[Tensor] = field(default_factory=list)
    _v: Tensor | None = None

    def __post_init__(self) -> None:
        self.stream = self.supervision.operations.target_stream(None)

    @property
    def v(self) -> Tensor:
        """[M, D] float32, of all the projector's calls."""
        if self._v is None:
            rows = torch.cat(self._given)
            if self.supervision.parts.layer_inputs:
                rows = rows.index_select(0, self.layout.positions)
            self._v = rows.float()
        return self._v

    def keep_v(self, out: Tensor) -> None:
        self._given.append(out.reshape(-1, out.shape[-1]))

    def keep_layer(self, h: int, hidden: Tensor) -> None:
        supervision, positions = self.supervision, self.layout.positions
        plan, operations = supervision.plan, supervision.operations
        rows = hidden.flatten(0, 1).index_select(0, positions).float()
        self.cos.append(cosine_similarity(self.v, rows, dim=1))
        if h in self.layers:
            self.words[h] = supervision.vocabulary.nearest(plan.without_massive(h, rows))
        if h <= supervision.layers:
            self.norms.append(operations.row_scaling(hidden, positions).norm)
        if plan.target.adds(h):
            self.stream.add(*plan.share(h, hidden, positions, operations))

    def keep_attention(self, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        mass = layer_mass(module, query, key, options, self.layout, self.supervision.operations)
        if mass is not None:
            self.mass = mass if self.mass is None else self.mass + mass
            self.attended += 1

    def maps(self, layout: Layout) -> TokenMaps:
        target, nearest = self.stream.target, self.supervision.vocabulary.nearest
        assert target is not None, "the forward didn't run"
        chosen = sorted(self.words)
        words = [nearest(self.v), *(self.words[h] for h in chosen), nearest(target)]
        cos = [*self.cos, cosine_similarity(self.v, target, dim=1)]
        attention = None
        if self.mass is not None:
            capture = Capture(self.layout, mass=self.mass, attended=self.attended)
            attention = patch_weights(capture, "attention", None).float().cpu()
        return TokenMaps(
            layout=layout,
            layers=self.supervision.layers,
            places=["v", *(f"h{h}" for h in chosen), "target"],
            words=torch.stack(words).cpu(),
            attention=attention,
            attended=self.attended,
            sinks=sinks(self.norms, self.layout).cpu(),
            cos=torch.stack(cos).cpu(),
        )
