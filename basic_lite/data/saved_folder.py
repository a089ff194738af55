"""Folders that ``save_to_disk`` of the `datasets` library has written, looked at before the library reads them.

The library believes what it finds: a file's name may lead anywhere, and a text may begin and end outside its file,
which ends the process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basic_lite.data.folder_source import require_no_split
from basic_lite.data.problems import nearest, shorten
from basic_lite.errors import UserError
from basic_lite.outside import as_object, open_file, read_json_file

_SPLITS, _STATE = "dataset_dict.json", "state.json"


def sound_folder(path: Path, name: str, split: str) -> Path:
    """The folder with the rows of a split, all of whose values lie where they should.

    Each file is read once: of texts every byte, of pictures where they begin and end.

    Args:
        name: the source's, for messages.

    Raises:
        UserError: there is no such split, or the folder isn't as the library writes it.
        OSError: a file of it can't be read.
    """
    if (path / _SPLITS).is_file():
        splits = _part(path / _SPLITS, "splits", name)
        if split not in splits:
            raise UserError(
                f"{name}: there is no split {split!r}{nearest(split, splits)}; it has {', '.join(map(str, splits))}. "
                "Set `split` of this data source."
            )
        path = path / _plain(split, path / _SPLITS, name)
    elif split != as_object(_read(path / _STATE, name)).get("_split"):
        require_no_split(name, split)
    for file in _files(path, name):
        _require_sound(file, name)
    return path


def _read(file: Path, name: str) -> Any:
    try:
        return read_json_file(file)
    except ValueError as error:
        raise _damaged(file, name, str(error)) from error


def _part(file: Path, key: str, name: str) -> list[Any]:
    found = _read(file, name)
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, list):
        raise _damaged(file, name, f"it has no list {key!r}")
    return value


def _files(folder: Path, name: str) -> Iterator[Path]:
    for one in _part(folder / _STATE, "_data_files", name):
        yield folder / _plain(one.get("filename") if isinstance(one, dict) else one, folder / _STATE, name)


def _plain(value: object, file: Path, name: str) -> str:
    """A name in the same folder."""
    if not isinstance(value, str) or value in ("", ".", "..") or set(value) & set("/\\\0:"):
        raise _damaged(file, name, f"{shorten(value)} is no name of a file in this folder")
    return value


def _require_sound(file: Path, name: str) -> None:
    import pyarrow as pa

    open_file(file).close()  # a pipe or a device has no end
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as batches:
            for batch in batches:
                batch.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise _damaged(file, name, str(error)) from error


def _damaged(file: Path, name: str, why: str) -> UserError:
    return UserError(f"{name}: {file} is damaged ({shorten(why, 200)}); save the data set again with `save_to_disk`.")
