"""``compare``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.errors import all_at_once


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run folders, or files of predictions; others against the first."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN,RUN,…",
            help="Runs that are one side: the same recipe with several seeds. Once for each side.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write a page there, such as compare.html.", show_default=False)
    ] = None,
) -> None:
    """Say whether a run is better than another, or if it is chance.

    Compares their answers to the same questions. Takes what `eval` wrote into the runs. Of several files that answer
    the same questions in all runs it takes that of the latest step, and then the last by name. Runs that answered
    different questions, or were scored by different rules, are refused. Questions whose pictures one of the runs
    was trained on are left out.

    Each difference has its 95 % interval, from questions that are weighed anew at random, the same for all, and from
    runs that are drawn anew where a side has several. Scores have the intervals that `eval` shows.
    Two single runs also have McNemar's test: of the questions that one alone has right, is the split uneven beyond
    chance? A run is called better only where interval and test both say so. Beside that stand the losses of the runs
    at the same steps.
    """
    from basic_lite.tools.compare.answers import require_answers
    from basic_lite.tools.compare.comparison import sides_of

    sides = sides_of(runs or [], group or [])
    all_at_once(*(partial(require_answers, place) for side in sides for place in side.places))
    from basic_lite.tools.compare.command import compare as show_comparison

    show_comparison(sides, out)
