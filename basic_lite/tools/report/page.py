"""``report.html`` of a run: one file that a browser opens without a network, written from the run's folder."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basic_lite.outside import as_object
from basic_lite.sizes import GIB, size_text
from basic_lite.supervision import RefinementCurve
from basic_lite.tools.maps.page import heading
from basic_lite.tools.maps.panels import STYLE, picture_panels, reading, strongest_of, trace_chart
from basic_lite.tools.report.charts import Chart, Line, smoothed
from basic_lite.tools.report.facts import RunFacts, Series, read_run
from basic_lite.tools.report.html import fill, write_page
from basic_lite.tools.report.scores import score_charts, verdict_of
from basic_lite.tools.report.text_probe import text_probe_section
from basic_lite.training.best_text import best_of
from basic_lite.training.data_json import known_before
from basic_lite.training.log_lines import damaged_text
from basic_lite.training.loss_text import NO_NUMBER, RISE, loss_text
from basic_lite.training.places import REPORT
from basic_lite.training.progress import duration_text

# Dropped records that are shown; all of them are in the run's data.json.
MOST_DROPPED = 50
NAMES = {"target": "v̂"}


@dataclass(frozen=True)
class Card:
    """One fact of the top of the page."""

    title: str
    value: str
    note: str = ""


def write_report(run: Path) -> Path:
    """Write a run's report into its folder; an older one is replaced.

    Returns:
        Its path.

    Raises:
        UserError: no run, nothing to report yet, or the file can't be written.
    """
    path = run / REPORT
    write_page(path, render(read_run(run)))
    return path


def render(facts: RunFacts) -> str:
    """The page's text."""
    return fill(
        "basic_lite.tools.report",
        "report.html.j2",
        name=facts.path.resolve().name,
        state=facts.state,
        changed=facts.row.changed,
        started_from=facts.row.started_from,
        damaged=damaged_text(facts.damaged),
        cards=list(cards(facts)),
        charts=[(title, chart, _rows_of(chart)) for title, chart in charts(facts)],
        looks=facts.looks,
        premise=_premise(facts),
        health=_health(facts),
        answers=facts.answers,
        maps=facts.maps,
        map_style=STYLE,
        map_panels=[
            (heading(one), one.text, picture_panels(one, strongest_of([one]), trace=False))
            for one in (facts.maps.pictures if facts.maps is not None else ())
        ],
        map_trace=_map_trace(facts),
        reading=reading(),
        known=known_before(facts.path),
        text_probe=text_probe_section(facts),
        time=_time(facts),
        data=list(_data(facts)),
        dropped=_dropped(facts),
        most_dropped=MOST_DROPPED,
        recipe=facts.recipe,
        versions=_versions(facts),
    )


def cards(facts: RunFacts) -> Iterator[Card]:
    """What came of the run, most important first."""
    verdict = verdict_of(facts.path, facts.log)
    for fact in verdict.cards() if verdict is not None else ():
        yield Card(*fact)
    if best := best_of(facts.path, facts.log):
        yield Card("Best step", f"{best.step:,}", "; ".join(best.lines()))
    held, trained = facts.held_out, facts.series["lm"]
    if held:
        start = f"{loss_text(held[0][1])} → " if len(held) > 1 else ""
        known = known_before(facts.path)
        note = f"nats a token; {known}" if known else "nats a token, on data that it wasn't trained on"
        yield Card("Held-out loss", f"{start}{loss_text(held[-1][1])}", note + _since_the_lowest(held))
    elif trained:
        none = "no data was held out: data.held_out=0.1 keeps a tenth"
        note = "nats a token; the held-out data wasn't looked at yet" if facts.holds_out else none
        yield Card("Training loss", f"{trained[-1][1]:.3f}", note)
    for share, _, rest in (match.partition(" ") for match in facts.row.matches):
        yield Card("Exact match", share, rest)
    if verdict is None and not facts.row.matches:
        asked = "--held-out" if facts.holds_out else "--data FILE"
        yield Card("Exact match", "not measured", f"measure it: basic-lite eval RUN {asked}")
    yield Card("BASIC", *_basic(facts))
    if premise := _premise_card(facts):
        yield premise
    memory = facts.series["peak_memory_gib"]
    if memory:
        yield Card("Peak memory", size_text(round(max(value for _, value in memory) * GIB)), _machine(facts))
    yield from _time_card(facts)


def _since_the_lowest(held: Series) -> str:
    """What to add where the last held-out loss is no number, or well above an earlier one."""
    finite = [point for point in held if math.isfinite(point[1])]
    if not finite or held[-1][1] <= RISE * (lowest := min(finite, key=lambda point: point[1]))[1]:
        return ""
    then = "has risen since" if math.isfinite(held[-1][1]) else f"{NO_NUMBER} now"
    return f"; it was {lowest[1]:.3f} at step {lowest[0]}, and {then}"


def _premise_card(facts: RunFacts) -> Card | None:
    """What was measured last of BASIC's premise; None: the run has no BASIC."""
    title = "BASIC's premise"
    look = facts.looks[-1] if facts.looks else None
    if look is not None and look.gain is not None:
        return Card(title, look.verdict, look.text)
    if facts.curves:
        step, curve = facts.curves[-1]
        return Card(title, curve.verdict, f"{curve.comparison(judged=False)}, step {step}")
    if not facts.steps_with_basic:
        return None
    return Card(title, "not measured", "supervision.refinement_batches=16 measures it at each evaluation")


def _time_card(facts: RunFacts) -> Iterator[Card]:
    """How long all of it took, and the steps' share; of a run that goes on the steps alone are known."""
    if (seconds := facts.train_seconds) is None:
        return
    speed = facts.series["tokens_per_s"]
    notes = [f"{sum(value for _, value in speed) / len(speed):,.0f} tokens a second"] if speed else []
    if (whole := facts.whole_time) is None:
        yield Card("Time of the steps", _lasted(seconds), "; ".join(notes))
        return
    share = whole.steps_s / whole.seconds if whole.seconds else 1.0
    notes.insert(0, f"{share:.0%} of it steps ({_lasted(whole.steps_s)}), the rest evaluating and saving")
    if whole.first:
        notes.append(f"of what came before step {whole.first + 1:,} only the steps are known")
    yield Card("Time of the run", _lasted(whole.seconds), "; ".join(notes))


def _lasted(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def _basic(facts: RunFacts) -> tuple[str, str]:
    on, steps = facts.steps_with_basic, len(facts.series["lm"])
    if not steps:
        return "no step is logged", ""
    if on == steps:
        return "on", "from the first step to the last"
    last = facts.looks[-1] if facts.looks else None
    why = ""
    if last is not None and not last.open:
        why = last.why_shut
    if not on:
        unjudged = "its premise wasn't judged: for that there were too few pictures or steps"
        return "off", why or (unjudged if facts.gated else "this run trains as LLaVA does")
    return f"on in {on} of {steps} logged steps", why


def _premise(facts: RunFacts) -> str:
    """The last curve in a sentence."""
    if not facts.curves:
        return ""
    step, curve = facts.curves[-1]
    return f"Step {step}: {curve.comparison(judged=not facts.looks)}."


def charts(facts: RunFacts) -> Iterator[tuple[str, Chart]]:
    """The charts that there is something for, each with its title."""
    trained, held = facts.series["lm"], facts.held_out
    over = max(1, len(trained) // 50)
    lines = [Line(f"training, mean of {over}" if over > 1 else "training", smoothed(trained, over))]
    lines.append(Line("held-out", held, marks=True))
    says = f"LM loss by step: training {_ends(trained)}; held-out {_ends(held)}."
    yield "Loss", Chart(says, "step", "LM loss, nats a token", lines)
    yield from score_charts(facts.path, facts.log)
    if facts.curves:
        yield "Refinement curve", _curve_chart(facts.curves, judged=not facts.looks)
    basic = [Line(name, facts.series[key]) for key, name in (("das", "DAS"), ("sds", "SDS")) if facts.series[key]]
    if basic:
        yield "BASIC's losses", Chart("DAS and SDS by step.", "step", "loss", basic, log_y=True)
    alike = facts.series["pairwise_cos"]
    if alike:
        cos = Line("v with v̂", facts.series["cos"])
        says = f"Mean cosine of two of a picture's visual tokens: {_ends(alike)}. Near 1 is collapse."
        yield "Likeness", Chart(says, "step", "cosine", [Line("v with other v", alike), cos])
    lengths = facts.series["norm_to_vocabulary"]
    if lengths:
        says = f"Length of v against word embeddings: {_ends(lengths)}."
        yield "Length of v", Chart(says, "step", "‖v‖ / ‖E‖", [Line("‖v‖ / ‖E‖", lengths)], log_y=True)


def _map_trace(facts: RunFacts) -> tuple[Chart, tuple[list[str], list[list[str]]]] | None:
    """cos(v, ṽ_h) of the pictures with token maps, and the same as a table."""
    if facts.maps is None:
        return None
    chart = trace_chart(facts.maps.pictures)
    return chart, _rows_of(chart)


def _curve_chart(curves: list[tuple[int, RefinementCurve]], *, judged: bool) -> Chart:
    chosen = curves if len(curves) < 3 else [curves[0], curves[-1]]
    lines = []
    for step, curve in chosen:
        scores = curve.score or []
        # An interval is of the gain over v, so it stands around v's score plus the gain.
        ends = [None, *((scores[0] + gain.low, scores[0] + gain.high) for gain in curve.gains)]
        bars = ends if len(ends) == len(scores) else [None] * len(scores)
        lines.append(Line(f"step {step}", list(enumerate(scores)), bars, marks=True))
    places = [NAMES.get(place, place) for place in chosen[-1][1].places]
    came = chosen[-1][1].comparison(judged=judged)
    says = f"Share of visual tokens nearest to a word of their own text, beyond chance. {came}."
    return Chart(says, "v, after each layer, and the target v̂", "score", lines, x_names=places)


def _ends(points: Series) -> str:
    if not points:
        return "none"
    first = f"{loss_text(points[0][1])} at step {points[0][0]}, " if len(points) > 1 else ""
    return f"{first}{loss_text(points[-1][1])} at step {points[-1][0]}"


def _rows_of(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """A chart's numbers as a table: head, rows. Long lines are thinned to some thirty rows."""
    each = [np.fromiter((x for x, _ in line.points), np.float64, len(line.points)) for line in chart.lines]
    every = np.unique(np.concatenate(each)) if each else np.empty(0)
    xs = sorted({*every[:: max(1, len(every) // 30)].tolist(), *every[-1:].tolist()})
    shown = set(xs)
    values = [{x: y for x, y in line.points if x in shown} for line in chart.lines]
    names = [chart.x_names[int(x)] if chart.x_names else f"{x:g}" for x in xs]
    rows = [[name, *(f"{one[x]:.4g}" if x in one else "" for one in values)] for name, x in zip(names, xs, strict=True)]
    return [chart.x, *(line.name for line in chart.lines)], rows


def _health(facts: RunFacts) -> list[tuple[str, ...]]:
    """Head and rows of the last curve's norms; nothing where they weren't measured."""
    health = facts.curves[-1][1].health if facts.curves else None
    if health is None:
        return []
    places = [NAMES.get(place, place) for place in facts.curves[-1][1].places]
    head = ("", "length of the first token", "of others", "share of the largest dimension", "sinks", "likeness")
    columns = (health.first_norm, health.other_norm, health.largest_share, health.sink_share, health.pairwise_cos)
    forms = ("{:.2f}", "{:.2f}", "{:.0%}", "{:.0%}", "{:.2f}")
    rows = [
        (place, *(form.format(column[i]) for form, column in zip(forms, columns, strict=True)))
        for i, place in enumerate(places)
    ]
    return [head, *rows]


def _time(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Parts of a step with their seconds and shares."""
    whole = sum(seconds for _, seconds in facts.time_parts)
    return [(name, f"{s:.3g} s", f"{s / whole:.0%}") for name, s in facts.time_parts if s > 0]


def _data(facts: RunFacts) -> Iterator[tuple[str, str]]:
    for key, name in (("train", "training"), ("eval", "held-out")):
        counts = as_object(facts.data.get(key))
        with suppress(KeyError, TypeError, ValueError):  # a file that somebody changed
            text = f"{counts['used']:,} records, {counts['with_images']:,} with a picture; "
            text += f"{counts['tokens']:,} tokens, {counts['supervised_tokens']:,} of them answers; "
            text += f"the longest has {counts['longest']:,}, {counts['cut']:,} were cut"
            yield name, text


def _dropped(facts: RunFacts) -> list[str]:
    found = [counts.get("dropped") for key in ("train", "eval") if isinstance(counts := facts.data.get(key), dict)]
    return [str(one) for dropped in found if isinstance(dropped, list) for one in dropped]


def _machine(facts: RunFacts) -> str:
    machine = as_object(facts.manifest.get("machine"))
    return ", ".join(str(machine[key]).removeprefix("torch.") for key in ("device", "dtype") if key in machine)


def _versions(facts: RunFacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was made with: since which step, and names with versions; then the models."""
    models = {name: str(value) for name, value in as_object(facts.manifest.get("models")).items() if value}
    software = [
        (f"from step {one['step'] + 1:,}:" if one["step"] else "", list(one["versions"].items()))
        for one in facts.software
    ]
    # Runs of versions before this one noted only basic-lite's own.
    software = software or [("", [("basic-lite", str(facts.manifest.get("basic_lite", "not known")))])]
    return [*software, ("models:", list(models.items()))] if models else software
