"""``basic-lite compare``: the tables on the terminal, and the page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from basic_lite.console import Sheet, show, speaker
from basic_lite.printable import printable
from basic_lite.resampling import Interval
from basic_lite.tools.compare.comparison import Comparison, Side, compared, remarks
from basic_lite.tools.compare.page import COMMAND, render
from basic_lite.tools.report.html import require_own, write_page


def compare(sides: Sequence[Side], out: Path | None = None, console: Console | None = None) -> Comparison:
    """Compare runs on the questions that all answered, print tables, and write the page.

    Args:
        out: the page's file; None: none.

    Raises:
        UserError: they answered different questions, were scored otherwise, or the page can't be written.
    """
    console = console or Console(highlight=False)
    if out is not None:
        require_own(out, COMMAND)
    found = compared(sides)
    say = speaker(console)
    say(f"{found.questions}{f' of {found.data}' if found.data else ''}, scored by {found.metric}")
    show(console, *_sheets(found))
    for line in remarks(found):
        say(line)
    if out is not None:
        write_page(out, render(found))
        console.print(printable(f"page: {out}"), soft_wrap=True, markup=False)
    return found


def _sheets(found: Comparison) -> Iterator[Sheet]:
    names = [side.name for side in found.sides]
    several = any(len(side.places) > 1 for side in found.sides)
    scores = Sheet(("run", *["runs"] * several, "score", "95 % interval"))
    for side, one in zip(found.sides, found.scores, strict=True):
        scores.add(side.name, *[str(len(side.places))] * several, f"{one.value:.3f}", between(one))
    yield scores
    tests = [one.test for one in found.against]
    head = ("only it", "only first", "p") if any(tests) else ()
    title = f"minus {names[0]}, with its 95 % interval" + "; questions that only one has right, McNemar's p" * bool(
        head
    )
    against = Sheet(("run", "difference", *head, "verdict"), title, text=("verdict",))
    for name, other in zip(names[1:], found.against, strict=True):
        test = other.test
        counts = (str(test.second), str(test.first), f"{test.p:.3g}") if test else ("–",) * len(head)
        against.add(name, other.gain.text, *counts, other.verdict)
    yield against
    if found.types:
        changes = [f"{name} − {names[0]}" for name in names[1:]]
        types = Sheet(("question type", "n", *names, *changes))
        for row in found.types:
            types.add(row.name, str(row.n), *(f"{x:.3f}" for x in row.scores), *(one.text for one in row.gains))
        yield types
    if found.losses:
        losses = Sheet(("at the same steps", "steps", "last", *names))
        for loss in found.losses:
            losses.add(loss.name, str(len(loss.steps)), str(loss.counted), *(f"{x:.4f}" for x in loss.last))
        yield losses


def between(one: Interval) -> str:
    """An interval in words."""
    return f"{one.low:.3f} to {one.high:.3f}"
