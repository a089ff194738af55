"""What the demo prints: how long each phase took, and the tables at its end."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from basic_lite.console import Sheet, command_line, show, speaker
from basic_lite.demo.place import Place, Scores, logged
from basic_lite.demo.world import chance
from basic_lite.printable import printable
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.resampling import signed
from basic_lite.supervision import RefinementCurve
from basic_lite.tools.score import ALL, accuracy_table
from basic_lite.training.log_lines import lines_of
from basic_lite.training.look_lines import GateLook, looks_in
from basic_lite.training.places import REPORT


@dataclass
class Phases:
    """Seconds each phase took; a phase whose result was there already is marked as reused."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)

    @contextmanager
    def phase(self, name: str) -> Iterator[str]:
        """Time what runs inside, below a heading."""
        self.console.rule(f"[bold]{name}", align="left")
        start = time.perf_counter()
        yield name
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def table(self) -> Sheet:
        """Seconds of each phase and in all."""
        table = Sheet(("time", "seconds"))
        for name, seconds in self.seconds.items():
            table.add(name + (" (reused)" if name in self.reused else ""), f"{seconds:.1f}")
        table.end_section()
        table.add("total", f"{sum(self.seconds.values()):.1f}", style="bold")
        return table


def refinement_of(run: Path) -> dict[str, Any]:
    """First and last refinement curve in a run's log, as ``{"start": …, "end": …}``."""
    curves = logged(run, "refinement")
    return {"start": curves[0], "end": curves[-1]} if curves else {}


def show_report(
    place: Place, columns: dict[str, Scores], curves: dict[str, dict[str, Any]], phases: Phases, console: Console
) -> None:
    run = place.out / "stage2"
    console.rule("[bold]result", align="left")
    instruct = json.loads(place.world.eval.read_text(encoding="utf-8"))
    by_chance = chance(instruct)
    last = columns["after stage 2"]
    by_chance[ALL] = sum(by_chance[kind] * last.counts[kind] for kind in by_chance) / last.counts[ALL]
    shares = {"chance": by_chance} | {name: scores.accuracy for name, scores in columns.items()}
    console.print("\nheld-out images, exact match by question type")
    show(console, accuracy_table(shares, last.counts))
    console.print(
        "chance: the best constant answer to each type. other image: the model after stage 2, shown another picture.\n"
    )
    console.print(captions_text(columns) + "\n")
    if any(curves.values()):
        show(console, refinement_table(curves))
        console.print(
            "Share of visual tokens whose nearest word is in the sample's own text, minus the same share against "
            "other samples' texts. BASIC's premise is that v̂ (the target) stands above v (the projector's output).\n"
            + premise_verdict(curves, looks_in(lines_of(run)), place.recipe(2, place.out).supervision)
        )
    show(console, phases.table())
    console.print(printable(f"\nrun folder: {run}"), soft_wrap=True, markup=False)
    console.print(printable(f"its page, for a browser: {run / REPORT}"), soft_wrap=True, markup=False)
    picture, question = example_of(place, instruct)
    out = place.out / "exported"
    lines = {
        "ask it about a picture": ["basic-lite", "chat", str(run), str(picture), question],
        "export it for other programs": ["basic-lite", "export", str(run), str(out)],
        "open the export in plain transformers": ["python", "-c", plain_script(out, picture, question)],
    }
    for what, words in lines.items():
        console.print(printable(f"{what}:\n  {command_line(words)}"), soft_wrap=True, markup=False)

    speaker(console)(
        "next, your own photos, with their texts in a table or in .txt files: `basic-lite data FOLDER` looks at them "
        "and writes a recipe, which says what it needs"
    )


def captions_text(columns: dict[str, Scores]) -> str:
    """What became of the descriptions of held-out pictures, with what the number means."""
    found = {name: one for name, one in columns.items() if one.caption_f1 is not None}
    scores = ", ".join(f"{name} {one.caption_f1:.3f}" for name, one in found.items())
    text = f"caption F1: {scores}. 1: descriptions name every object of a picture, and no other; places don't count."
    right = [
        f"{name} {one.captions_right} of {one.captions}"
        for name, one in found.items()
        if one.captions_right is not None
    ]
    return text + (f" Right word for word: {', '.join(right)}." if right else "")


VERDICTS = {
    "holds": "So the premise holds here.",
    "fails": "So the premise does not hold here.",
    "can't tell": "So these samples can't tell whether the premise holds here.",
}


def premise_verdict(curves: dict[str, dict[str, Any]], looks: Sequence[GateLook], settings: SupervisionSection) -> str:
    """What the last curve of training says of BASIC's premise, or the gate's last look, and what ails the target."""
    curve = RefinementCurve.from_dict(curves["stage2"]["end"])
    illnesses = {} if curve.health is None else curve.health.illnesses(settings)
    found, verdict = curve.comparison(judged=not looks), str(curve.verdict)
    if looks:
        found = f"{found}. The gate decides on samples that didn't choose v̂: {looks[-1].text}"
        verdict = looks[-1].verdict
    lines = [
        f"After stage 2: {found}. {VERDICTS[verdict]} The interval is of samples (95 %), not of seeds; "
        "docs/EVIDENCE.md says what BASIC changes over several.",
        *(f"{name}: {text}" for name, text in illnesses.items()),
    ]
    return "\n".join(lines) + "\n"


def refinement_table(curves: dict[str, dict[str, Any]]) -> Sheet:
    """The refinement curves: a row for each stage's start and end, a column for v, each layer and v̂."""
    first = next(curve for stage in curves.values() for curve in stage.values())
    places = ("v̂" if name == "target" else name for name in first["places"])
    table = Sheet(("stage", *places), "refinement curve")
    for stage, pair in curves.items():
        for when, curve in pair.items():
            # Without a second sample there is no score.
            score = [signed(value) for value in curve["score"] or []] or ["–"] * len(curve["places"])
            table.add(f"{stage}, {when}", *score)
    return table


def example_of(place: Place, instruct: list[dict[str, Any]]) -> tuple[Path, str]:
    """A picture and a question about it, of the held-out ones."""
    chosen = next((r for r in instruct if r["question_type"] == "colour"), instruct[0])
    question = chosen["conversations"][0]["value"].replace("<image>", "").strip()
    return place.world.images / chosen["image"], question


def plain_script(folder: Path, picture: Path, question: str) -> str:
    """Python that asks an exported folder by transformers alone."""
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": question}]
    return (
        "from transformers import pipeline; "
        f"ask = pipeline('image-text-to-text', model={str(folder)!r}); "
        f"print(ask(text=[{{'role': 'user', 'content': {content!r}}}], return_full_text=False)[0]['generated_text'])"
    )
