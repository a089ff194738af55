"""A column that says which part of the data a record belongs to; nothing chooses by it."""

from collections import Counter
from collections.abc import Mapping

from basic_lite.data.columns import SPLIT, plain_name
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Records, Source

SPLIT_MEND = "write each part into a file of its own, and name them in data.train.path and data.eval.path"
# Values that are named.
_MOST = 5


def parts_of(records: Records) -> Counter[str]:
    """How many records each value of the column `split` has; empty: no source has it, or it has one value alone.

    A column that the recipe maps means something else. Values that are no text are passed over.
    """
    parts: Counter[str] = Counter()
    for source in records.sources:
        parts.update(_parts_in(source))
    return parts if len(parts) > 1 else Counter()


def counted(parts: Counter[str]) -> str:
    """The values with their counts, the commonest first."""
    more = f", and {len(parts) - _MOST:,} other values" if len(parts) > _MOST else ""
    return ", ".join(f"{name} {count:,}" for name, count in parts.most_common(_MOST)) + more


def _parts_in(source: Source) -> Counter[str]:
    name = _column(source)
    if name is None:
        return Counter()
    values = (_row(source, index).get(name) for index in range(len(source)))
    return Counter(value.strip() for value in values if isinstance(value, str) and value.strip())


def _column(source: Source) -> str | None:
    """What the source calls the column. Where each record has columns of its own, the first one's are meant."""
    present = source.present or (tuple(_row(source, 0)) if len(source) else ())
    free = [one for one in present if isinstance(one, str) and one not in source.columns.values()]
    return next((one for one in free if plain_name(one) == SPLIT), None)


def _row(source: Source, index: int) -> Mapping[str, object]:
    try:
        row = source.row(index)
    except RecordProblem:
        return {}
    return row if isinstance(row, Mapping) else {}
