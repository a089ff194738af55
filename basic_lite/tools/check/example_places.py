"""Where a finding's examples are: file, record and id, so that a person finds them there."""

from collections.abc import Iterator, Sequence

from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Records
from basic_lite.printable import one_line
from basic_lite.tools.check.findings import Example, Finding
from basic_lite.tools.check.survey import Pictures

# Examples that the terminal names; the page shows more.
_NAMED = 3
_MOST_OF_NAME = 80


def first_places(found: Finding, sources: Sequence[Records], pictures: Pictures) -> str:
    """The places of a finding's first examples in a line; empty: it has none.

    Args:
        sources: the records that examples are of.
    """
    places = [" and ".join(places_of(one, sources, pictures)) for one in found.examples]
    named = [place for place in places if place]
    return "; ".join(named[:_NAMED]) + "; …" * (len(named) > _NAMED)


def places_of(example: Example, sources: Sequence[Records], pictures: Pictures) -> Iterator[str]:
    """The place of an example's record, and of the first record that has each of its pictures."""
    if example.place:
        yield example.place
    if example.record is not None:
        index, source = example.record
        yield place_of(sources[source], index)
    for number in example.pictures:
        at = pictures.places[number]
        name = one_line(at.image(sources).name, _MOST_OF_NAME)
        yield f"{name} ({place_of(sources[at.source], at.record)})"


def place_of(records: Records, index: int) -> str:
    """How messages name a record, with its id, also where it can't be used."""
    try:
        return records[index].place
    except RecordProblem as problem:
        return problem.place
