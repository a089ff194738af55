"""The data sources of a recipe, opened as one sequence of records.

They are JSON and JSONL files, tables, folders of pictures, and what the `datasets` library reads: a hub name, local
parquet files, or a folder saved by `save_to_disk`.
"""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from basic_lite.choices import mend_of_missing
from basic_lite.data.columns import SPLIT, TEXTS, options_columns, plain_name, require_columns
from basic_lite.data.folder_source import FolderSource, metadata_of, require_no_split
from basic_lite.data.json_source import JsonSource
from basic_lite.data.problems import BadRecord, shorten
from basic_lite.data.prompts import prompts_of
from basic_lite.data.record import numbered
from basic_lite.data.records import Records, Source
from basic_lite.data.saved_folder import sound_folder
from basic_lite.data.table_source import TableSource
from basic_lite.data.unfit import holding_files, looked_at
from basic_lite.data.walk import links_note, matching
from basic_lite.endings import TABLE_ENDINGS
from basic_lite.errors import UserError, all_at_once, reason_of
from basic_lite.model.hub import hub_is_away
from basic_lite.outside import place_in
from basic_lite.printable import one_line, quoted
from basic_lite.recipe.combinations import check_source
from basic_lite.recipe.not_yaml import BACKSLASH
from basic_lite.recipe.rules import in_order
from basic_lite.recipe.schema import SourceSection

Mend = Callable[[Path], str]
_OTHERWISE = "put it there, or correct the path"


def load_records(section: SourceSection | Sequence[SourceSection], *, root: Path, key: str = "") -> Records:
    """The records of `data.train` or `data.eval`. Relative paths are relative to ``root``.

    Args:
        key: the recipe's key that has the sections; for messages.

    Raises:
        UserError: a source can't be read: missing file, broken JSON (with line and column), unknown column, …
    """
    require_sources(section, root, key)
    records = Records([_open_source(one, root) for one in in_order(section)])
    if not len(records):
        names = ", ".join(source.name for source in records.sources) or "data.train"
        raise UserError(f"{names}: there is no record in it; give a source that has some")
    return records


def require_sources(
    section: SourceSection | Sequence[SourceSection], root: Path, key: str = "", mend: Mend = mend_of_missing
) -> None:
    """See that each source names one place, and that what it names on this machine is there. The hub isn't asked.

    Args:
        mend: what mends a path where nothing is; empty: nobody knows.

    Raises:
        UserError: names all that isn't, each with its key and a mend.
    """
    if isinstance(section, SourceSection):
        all_at_once(*_looks_at(section, root, f"{key}." if key else "", mend))
    else:
        named = [(one, f"{key}.{number}." if key else "") for number, one in enumerate(section)]
        all_at_once(*(look for one, name in named for look in _looks_at(one, root, name, mend)))


def _looks_at(section: SourceSection, root: Path, before: str, mend: Mend) -> Iterator[Callable[[], object]]:
    """A look at each thing that a source names.

    Args:
        before: what stands before the names of its keys.

    Raises:
        UserError: it names no place, or several.
    """
    check_source(section)
    folders = {"image_dir": section.image_dir, "folder": section.folder, "saved": section.saved}
    for key, name in folders.items():
        if name:
            yield partial(_require_there, "folder", before + key, name, root, mend)
    if section.path:
        yield partial(_require_there, "file", before + "path", section.path, root, mend)
    if section.parquet:
        yield partial(_parquet_files, before + "parquet", section.parquet, root, mend)


def _require_there(kind: Literal["file", "folder"], key: str, name: str, root: Path, mend: Mend) -> None:
    place = place_in(root, name)
    if not (os.path.isdir(place) if kind == "folder" else os.path.exists(place)):
        otherwise = "put it there, correct the path, or leave the key out" if key.endswith("image_dir") else _OTHERWISE
        raise _missing(f"{key}: there is no {kind}", name, mend(Path(name)) or otherwise)


def _missing(what: str, name: str, mend: str) -> UserError:
    """The error of a path where nothing is; a line break in it is likely to have been a backslash and an n."""
    if set(name) & set("\a\b\t\n\v\f\r\x1b"):
        mend = f"it was probably written with backslashes in double quotes, {BACKSLASH}"
    return UserError(f"{what} {name if name.isprintable() else quoted(name)}; {mend}")


def _parquet_files(key: str, name: str, root: Path, mend: Mend = mend_of_missing) -> tuple[list[str], tuple[str, ...]]:
    """The files that a name means, or a pattern, and what the user should know about them.

    Raises:
        UserError: there is none, or a folder that the pattern leads through can't be read.
    """
    path = place_in(root, name)
    again: list[str] = []
    files = [str(path)] if os.path.isfile(path) else matching(path, again)
    if not files:
        known = "" if glob.has_magic(name) else mend(Path(name))
        raise _missing(f"{key}: no file matches", name, known or _OTHERWISE)
    return files, links_note(again, name)


def _open_source(section: SourceSection, root: Path) -> Source:
    """The source of a section that ``require_sources`` has passed."""
    if section.folder:
        metadata = metadata_of(place_in(root, section.folder), section.split)
        if metadata is None:
            require_no_split(section.folder, section.split)
            return FolderSource(section, root)
        section = _described(section, metadata)
    if not section.path:
        return DatasetsSource(section, root)
    table = section.path.lower().endswith(TABLE_ENDINGS)
    return TableSource(section, root) if table else JsonSource(section, root)


def _described(section: SourceSection, metadata: str) -> SourceSection:
    """A folder's source as that of the metadata file in it, whose pictures lie beside that."""
    assert section.folder is not None
    kind = "parquet" if metadata.endswith(".parquet") else "path"
    path = Path(section.folder, metadata)
    return section.model_copy(update={"folder": None, kind: path.as_posix(), "image_dir": path.parent.as_posix()})


class DatasetsSource:
    """Rows of a memory-mapped Arrow table. Image bytes stay in the file until an image is decoded."""

    def __init__(self, section: SourceSection, root: Path) -> None:
        self.notes: tuple[str, ...]
        dataset, self.name, folder, self.notes = _open_dataset(section, root)
        if section.image_dir is not None:
            folder = place_in(root, section.image_dir)
        self.image_dir = str(folder.absolute())
        self.present = tuple(dataset.column_names)
        self.columns: Mapping[str, str] = dict(section.columns)
        found = require_columns(section.columns, self.present, self.name)
        self.prompts = prompts_of(section)
        # A class is stored as a number; its name is what is meant.
        self._classes = {name: feature.names for name, feature in dataset.features.items() if hasattr(feature, "names")}
        if section.limit is not None:
            dataset = dataset.select(range(min(section.limit, len(dataset))))
        # Arrow rows, with no feature decoding: an image column gives its bytes as a scalar, not a decoded
        # picture.
        split = {name for name in self.present if plain_name(name) == SPLIT}
        usual = {name for name in self.present if plain_name(name) in TEXTS}
        wanted = {*found.values(), *usual, *looked_at(self.present), *options_columns(self.present), *split}
        self.dataset = dataset.select_columns(sorted(wanted)).with_format("arrow")
        self._lazy = {*holding_files(self.present)} - {*found.values()} | {found.get("image", "")}

    def __len__(self) -> int:
        return len(self.dataset)

    def place(self, index: int) -> str:
        """Source and number of a row."""
        return numbered(self.name, index + 1)

    def row(self, index: int) -> dict[str, Any]:
        """One row: text columns as Python values, the image column as references to its bytes.

        Raises:
            BadRecord: Python has no such value: text that isn't UTF-8, a date after the year 9999, …
        """
        table = self.dataset[index]
        row = {name: _value(table.column(name)[0], name, lazy=name in self._lazy) for name in table.column_names}
        for name in self._classes.keys() & row.keys():
            number, names = row[name], self._classes[name]
            # −1 is how the library writes that there is none.
            row[name] = names[number] if number is not None and 0 <= number < len(names) else None
        return row


def _value(scalar: Any, name: str, *, lazy: bool) -> Any:
    try:
        return _lazy(scalar) if lazy else scalar.as_py()
    # What Arrow raises are these, too.
    except (ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError) as error:
        why = shorten(" ".join(str(error).split()), 120)
        raise BadRecord(f"the value of {shorten(name)} can't be read ({why})", "correct it in the data set") from error


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


def _library(*, away: bool) -> Any:
    """The `datasets` library, which tells nobody what it loads, unless the person's own settings say otherwise.

    It reads these settings when it is imported. In a notebook that may have been before.

    Args:
        away: the hub can't be reached: what was fetched before is taken at once, and the rest refused.
    """
    # It would tell its makers' server of each load, and wait for it without a network.
    quiet = os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0") == "0"
    offline = away and os.environ.setdefault("HF_DATASETS_OFFLINE", "1") == "1"
    import datasets

    if quiet:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if offline:
        datasets.config.HF_HUB_OFFLINE = True
    return datasets


def _open_dataset(section: SourceSection, root: Path) -> tuple[Any, str, Path, tuple[str, ...]]:
    """The data set, its name in messages, the folder its image paths are relative to by default, and notes."""
    datasets = _library(away=bool(section.hub) and hub_is_away())
    try:
        if section.hub:
            dataset = datasets.load_dataset(section.hub, section.config, split=section.split)
            return dataset, f"{section.hub} [{section.split}]", root, ()
        if section.parquet:
            files, notes = _parquet_files("parquet", section.parquet, root)
            # The library takes names for patterns, too.
            escaped = [glob.escape(file) for file in files]
            dataset = datasets.load_dataset("parquet", data_files=escaped, split="train")
            return dataset, section.parquet, Path(files[0]).parent, notes
        assert section.saved is not None
        path = place_in(root, section.saved)
        dataset = datasets.load_from_disk(str(sound_folder(path, section.saved, section.split)))
        return dataset, section.saved, path, ()
    except UserError:
        raise
    # The library raises its own errors, the hub client's, fsspec's and Arrow's, with no common base.
    except Exception as error:
        where = section.hub or section.parquet or section.saved
        cause = error.__cause__ or error  # the library says of some errors only that there was one
        reason = one_line(" ".join(str(cause).split()) or reason_of(cause))
        if section.hub and hub_is_away():
            raise UserError(
                f"{where}: the data set isn't here, and the hub can't be reached ({reason}). Connect to the "
                "network, or download it where there is one and name it in `parquet` or `saved` of this data source."
            ) from error
        raise UserError(
            f"{where}: the data set can't be read ({reason}). Correct hub, config, split, parquet or saved "
            f"of this data source."
        ) from error
