"""The look itself: the refinement curve and the text's attention, over samples of any of the two kinds of models."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from basic_lite.supervision import RefinementCurve, Supervision, refinement_curve
from basic_lite.supervision.layout import TextQueries
from basic_lite.supervision.text_attention import TextAttention
from basic_lite.tools.inspect.facts import Facts


@dataclass(frozen=True)
class Look:
    """What was measured."""

    curve: RefinementCurve
    attention: list[float | None]  # Σ_i a_i after each layer; None: it has no softmax attention
    supervised: int  # K, the layers that v̂ is made of
    illnesses: dict[str, str]  # of the target, as ``Health`` names them


@dataclass(frozen=True)
class Inspection:
    """All that the report says."""

    facts: Facts
    samples: str  # what was looked at, and where its texts are from
    tokens: tuple[float, float] | None  # visual tokens of a picture, the fewest and the most
    look: Look | None  # None: nothing was measured

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        found: dict[str, Any] = {"model": asdict(self.facts), "samples": self.samples, "tokens_per_image": self.tokens}
        if self.look is not None:
            curve = self.look.curve
            found |= {
                "curve": curve.to_dict(),
                "verdict": curve.verdict,
                "supervised_layers": self.look.supervised,
                "text_attention": self.look.attention,
                "illnesses": self.look.illnesses,
            }
        return found


def look(
    supervision: Supervision, batches: Iterable[Mapping[str, Tensor]], tokenizer: Any, text_queries: TextQueries = "all"
) -> Look:
    """Measure in one forward of each batch.

    Args:
        batches: on the model's device; wrap the call in the autocast that a run trained with.
        text_queries: whose attention to the picture is read.
    """
    meter = TextAttention(supervision.parts, supervision.operations, text_queries)
    with meter.watching():
        curve = refinement_curve(supervision, meter.over(batches), tokenizer)
    illnesses = {} if curve.health is None else curve.health.illnesses(supervision.settings)
    return Look(curve, meter.masses(), supervision.layers, illnesses)
