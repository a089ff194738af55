"""The data sources of a recipe, opened as one sequence of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basic_lite.data.hf_source import DatasetsSource
from basic_lite.data.json_source import JsonSource
from basic_lite.data.records import Records, Source
from basic_lite.errors import UserError
from basic_lite.recipe.combinations import check_source
from basic_lite.recipe.schema import SourceSection


def load_records(section: SourceSection | Sequence[SourceSection], *, root: Path) -> Records:
    """The records of `data.train` or `data.eval`. Relative paths are relative to ``root``.

    Raises:
        UserError: a source can't be read: missing file, broken JSON (with line and column), unknown column, …
    """
    sections = [section] if isinstance(section, SourceSection) else list(section)
    records = Records([_open(one, root) for one in sections])
    if not len(records):
        names = ", ".join(source.name for source in records.sources) or "data.train"
        raise UserError(f"{names}: there is no record in it; give a source that has some")
    return records


def _open(section: SourceSection, root: Path) -> Source:
    check_source(section)
    if section.image_dir is not None and not (root / section.image_dir).expanduser().is_dir():
        raise UserError(f"image_dir: there is no folder {section.image_dir}; correct it, or leave it out.")
    return JsonSource(section, root) if section.path else DatasetsSource(section, root)
