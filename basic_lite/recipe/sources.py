"""Rules of a data source: which data it names, and under which column names."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from basic_lite.errors import UserError
from basic_lite.recipe.problems import Wrong
from basic_lite.recipe.schema import SourceSection
from basic_lite.recipe.values import Finding, Unusable, Values

KINDS = ("path", "hub", "parquet", "saved")
COLUMN_NAMES = ("id", "image", "conversations", "question", "answer", "question_type")


def check_source(section: SourceSection) -> None:
    """Refuse a data source that was built in Python; a recipe's have been checked already.

    Raises:
        UserError: with everything that is wrong with it.
    """
    found = [message for _, message in _source(Values(section.model_dump()), "")]
    if found:
        raise UserError("a data source can't be read: " + "; ".join(found))


def source_findings(v: Values) -> Iterator[Finding]:
    """What is wrong with the sources of `data.train` and `data.eval`."""
    for key in ("data.train", "data.eval"):
        value = v.get(key)
        if value == []:
            yield [key], f"the list of sources is empty; give at least one source with {', '.join(KINDS)}"
        sources = [] if value is None else [(key, value)]
        if isinstance(value, list):
            sources = [(f"{key}.{number}", entry) for number, entry in enumerate(value)]
        for at, source in sources:
            if not isinstance(source, Wrong):
                yield from _source(Values(source), f"{at}.")


def _source(v: Values, at: str) -> Iterator[Finding]:
    """Findings in one source; ``at``: what its keys are below, with a dot."""
    try:
        given = [f"{at}{kind}" for kind in KINDS if v[kind]]
    except Unusable:
        return
    if not given:
        yield [at.rstrip(".")], f"the source names no data; give one of {', '.join(at + kind for kind in KINDS)}"
    if len(given) > 1:
        yield given, f"one source can't be {' and '.join(given)} at once; keep one, or make a list of sources"
    try:
        if v["config"] is not None and given and f"{at}hub" not in given:
            yield [f"{at}config", given[0]], f"{at}config belongs to {at}hub; remove it"
        columns = v["columns"]
    except Unusable:
        return
    for name in columns:
        if name not in COLUMN_NAMES:
            near = get_close_matches(name, COLUMN_NAMES, 1, 0.0)[0]
            message = f"{name!r} is none of our names ({', '.join(COLUMN_NAMES)}); the nearest is {near!r}"
            yield [f"{at}columns.{name}"], message
