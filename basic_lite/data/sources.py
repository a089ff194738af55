"""The data sources of a recipe, opened as one sequence of records: LLaVA files, and those of the `datasets` library.

Those are a hub name, local parquet files, or a folder saved by `save_to_disk`.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.data.json_source import JsonSource
from basic_lite.data.problems import nearest
from basic_lite.data.records import COLUMNS, Records, Source
from basic_lite.errors import UserError
from basic_lite.recipe.combinations import check_source
from basic_lite.recipe.schema import SourceSection


def load_records(section: SourceSection | Sequence[SourceSection], *, root: Path) -> Records:
    """The records of `data.train` or `data.eval`. Relative paths are relative to ``root``.

    Raises:
        UserError: a source can't be read: missing file, broken JSON (with line and column), unknown column, …
    """
    sections = [section] if isinstance(section, SourceSection) else list(section)
    records = Records([_open_source(one, root) for one in sections])
    if not len(records):
        names = ", ".join(source.name for source in records.sources) or "data.train"
        raise UserError(f"{names}: there is no record in it; give a source that has some")
    return records


def _open_source(section: SourceSection, root: Path) -> Source:
    check_source(section)
    if section.image_dir is not None and not (root / section.image_dir).expanduser().is_dir():
        raise UserError(f"image_dir: there is no folder {section.image_dir}; correct it, or leave it out.")
    return JsonSource(section, root) if section.path else DatasetsSource(section, root)


class DatasetsSource:
    """Rows of a memory-mapped Arrow table. Image bytes stay in the file until an image is decoded."""

    def __init__(self, section: SourceSection, root: Path) -> None:
        dataset, self.name, folder = _open_dataset(section, root)
        if section.image_dir is not None:
            folder = (root / section.image_dir).expanduser()
        self.image_dir = str(folder.absolute())
        self.columns = _columns(section.columns, dataset.column_names, self.name)
        if section.limit is not None:
            dataset = dataset.select(range(min(section.limit, len(dataset))))
        # Arrow rows, with no feature decoding: an image column gives its bytes as a scalar, not a decoded
        # picture.
        self.dataset = dataset.select_columns(sorted(set(self.columns.values()))).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> dict[str, Any]:
        """One row: text columns as Python values, the image column as references to its bytes."""
        table = self.dataset[index]
        image = self.columns.get("image")
        return {
            name: _lazy(table.column(name)[0]) if name == image else table.column(name)[0].as_py()
            for name in table.column_names
        }


def _lazy(scalar: Any) -> Any:
    """An image scalar with its bytes left where they are."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ExtensionScalar):
        return _lazy(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        fields = set(scalar.type.names)
        blob = scalar["bytes"] if "bytes" in fields else None
        path = scalar["path"].as_py() if "path" in fields else None
        return {"bytes": blob if blob is not None and blob.is_valid else None, "path": path}
    if isinstance(scalar, pa.ListScalar):
        values = scalar.values
        return [] if values is None else [_lazy(one) for one in values]
    if pa.types.is_binary(scalar.type) or pa.types.is_large_binary(scalar.type):
        return {"bytes": scalar, "path": None}
    return scalar.as_py()


def _open_dataset(section: SourceSection, root: Path) -> tuple[Any, str, Path]:
    """The data set, its name in messages, and the folder its image paths are relative to by default."""
    import datasets

    try:
        if section.hub:
            dataset = datasets.load_dataset(section.hub, section.config, split=section.split)
            return dataset, f"{section.hub} [{section.split}]", root
        if section.parquet:
            files = sorted(glob.glob(str((root / section.parquet).expanduser()), recursive=True))
            if not files:
                raise UserError(f"{section.parquet}: no file matches; correct `parquet` of this data source.")
            dataset = datasets.load_dataset("parquet", data_files=files, split="train")
            return dataset, section.parquet, Path(files[0]).parent
        assert section.saved is not None
        path = (root / section.saved).expanduser()
        if not path.is_dir():
            raise UserError(f"{section.saved}: there is no such folder; correct `saved` of this data source.")
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, Mapping):
            if section.split not in dataset:
                raise UserError(
                    f"{section.saved}: there is no split {section.split!r}{nearest(section.split, dataset)}; "
                    f"it has {', '.join(dataset)}. Set `split` of this data source."
                )
            dataset = dataset[section.split]
        return dataset, section.saved, path
    except UserError:
        raise
    # The library raises its own errors, the hub client's, fsspec's and Arrow's, with no common base.
    except Exception as error:
        where = section.hub or section.parquet or section.saved
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where}: the data set can't be read ({reason}). Correct hub, config, split, parquet or saved "
            f"of this data source."
        ) from error


def _columns(asked: Mapping[str, str], present: list[str], name: str) -> dict[str, str]:
    """Our names to theirs: what the recipe maps, else the column that is there under a usual name."""
    for ours, wanted in asked.items():
        if wanted not in present:
            raise UserError(
                f"{name}: there is no column {wanted!r}{nearest(wanted, present)}; "
                f"it has {', '.join(present)}. Correct columns.{ours} of this data source."
            )
    found = dict(asked)
    for ours, usual in COLUMNS.items():
        if ours not in found and (theirs := next((one for one in usual if one in present), None)):
            found[ours] = theirs
    if "conversations" not in found and "question" not in found:
        raise UserError(
            f"{name}: none of its columns ({', '.join(present)}) is called "
            f"{' or '.join(COLUMNS['conversations'])} or question; map one with columns.conversations, "
            f"or with columns.question and columns.answer."
        )
    # A map that names question and answer means those, even where a conversations column exists too.
    if "question" in asked and "conversations" not in asked:
        found.pop("conversations", None)
    return found
