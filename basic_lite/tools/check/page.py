"""The page of a check: each finding with examples, in one file that a browser opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite.data.images import ImageRef, small_copy
from basic_lite.data.problems import BadImage, RecordProblem
from basic_lite.data.records import Records
from basic_lite.printable import one_line
from basic_lite.tools.check.example_places import place_of
from basic_lite.tools.check.findings import Example, Finding
from basic_lite.tools.check.survey import Pictures
from basic_lite.tools.report.html import fill, mark_of, write_page

COMMAND = "check"
_THUMBNAIL, _MOST_OF_TEXT = 160, 300


@dataclass(frozen=True)
class Shown:
    """One example, ready for the page."""

    place: str
    text: str
    turns: Sequence[tuple[str, str]]
    pictures: Sequence[tuple[str, str]]  # name, data URI (empty: it can't be shown)


def write_check(
    path: Path, title: str, facts: Sequence[str], found: Sequence[Finding], sources: Sequence[Records], seen: Pictures
) -> None:
    """Write the page; an older one is replaced.

    Args:
        facts: lines below the title.
        sources: the records that examples are of.
    """
    shown = [(one, [_shown(example, sources, seen) for example in one.examples]) for one in found]
    values = {"title": title, "facts": facts, "findings": shown, "mark": mark_of(COMMAND)}
    write_page(path, fill("basic_lite.tools.check", "check.html.j2", **values))


def _shown(example: Example, sources: Sequence[Records], seen: Pictures) -> Shown:
    place, turns, pictures = example.place, [], []
    if example.record is not None:
        index, source = example.record
        place = place_of(sources[source], index)
        try:
            record = sources[source][index]
        except RecordProblem:
            return Shown(place, example.text, [], [])
        turns = [(turn.role, one_line(turn.text, _MOST_OF_TEXT)) for turn in record.turns[:4]]
        pictures = list(record.images[:2])
    pictures += [seen.places[number].image(sources) for number in example.pictures]
    return Shown(place, example.text, turns, [(image.name, _thumbnail(image)) for image in pictures])


def _thumbnail(image: ImageRef) -> str:
    """A small copy as a data URI; nothing of a picture that can't be read."""
    try:
        return small_copy(image, _THUMBNAIL, 75, least=2 * _THUMBNAIL)
    except BadImage:
        return ""
