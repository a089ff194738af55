"""The inspection as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console

from basic_lite.console import Sheet, show, speaker
from basic_lite.resampling import LEAST_SAMPLES, signed
from basic_lite.supervision import RefinementCurve
from basic_lite.supervision.health import Health
from basic_lite.tools.inspect.facts import Facts
from basic_lite.tools.inspect.look import Inspection, Look

_PLACES = ("place", "score", "gain over v", "cos v", "norm", "sinks", "largest", "text")
_LEGEND = (
    "score: share of visual tokens whose nearest word is in its text, minus that for others' texts; "
    f"gain: with its 95 % interval, from {LEAST_SAMPLES} pictures on; cos v: cosine with v; norm: in lengths of a "
    "word; sinks: tokens over four times as long as the median; largest: the dimension with most energy, its share; "
    "text: how much of the text's attention goes to the picture"
)


def show_inspection(found: Inspection, console: Console) -> None:
    """Print it: what the model is, the curve, the verdict, whether it could be trained."""
    say = speaker(console)
    show(console, _facts(found))
    if found.look is not None:
        if found.look.curve.health is not None:
            show(console, _curve(found.look))
            say(_LEGEND)
        say(found.look.curve.summary())
        if warning := found.look.curve.warning():
            say(f"warning: {warning}")
        for name, text in found.look.illnesses.items():
            say(f"note: {name}: {text}")
    say(f"can it be trained with BASIC today? {found.facts.training}")


def _facts(found: Inspection) -> Sheet:
    facts = found.facts
    sheet = Sheet(("", ""), facts.name)
    for what, text in _rows(facts):
        sheet.add(what, text)
    if found.tokens is not None:
        few, most = found.tokens
        sheet.add("measured", f"{few:g}" + (f" to {most:g}" if most > few else "") + " visual tokens a picture")
    if found.look is not None:
        sheet.add("v̂ is made", f"of layers 1 to {found.look.supervised}")
    if found.samples:
        sheet.add("samples", found.samples)
    return sheet


def _rows(facts: Facts) -> Sequence[tuple[str, str]]:
    rows = [
        ("family", facts.family),
        ("LLM", f"{facts.language_model}: {facts.layers} layers, width {facts.width:,}, {facts.words:,} words"),
        ("vision", f"{facts.vision_tower}, width {facts.vision_width:,}"),
        ("projector", f"{facts.projector}, {facts.projector_parameters:,} weights"),
        ("tokens", facts.tokens),
    ]
    if facts.softmax_layers < facts.layers:
        rows.append(("attention", f"a softmax in {facts.softmax_layers} of {facts.layers} layers; others are skipped"))
    return [*rows, *(("note", text) for text in facts.notes)]


def _curve(look: Look) -> Sheet:
    curve, health = look.curve, look.curve.health
    assert health is not None
    sheet = Sheet(_PLACES, "Where visual tokens become words")
    masses = [None, *look.attention, None]
    for number, place in enumerate(curve.places):
        target = number == len(curve.places) - 1
        cells = [*_scores(curve, number), *_shape(health, number), _share(masses[number])]
        sheet.add("v̂" if target else place, *cells, style="bold" if target else "")
    return sheet


def _scores(curve: RefinementCurve, number: int) -> list[str]:
    if curve.score is None:
        return ["", ""]
    return [signed(curve.score[number]), curve.gain_text(number - 1) if number else ""]


def _shape(health: Health, number: int) -> list[str]:
    return [
        f"{health.cos_v[number]:.2f}",
        f"{health.other_norm[number] or health.first_norm[number]:.3g}",
        _share(health.sink_share[number]),
        f"{health.largest_dimension[number]} {health.largest_share[number]:.0%}",
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}" if value >= 0.0995 or not value else f"{value:.1%}"
