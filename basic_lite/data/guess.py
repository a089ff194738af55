"""What a path means: the data source that a user has in mind who names a file or a folder."""

import glob
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from basic_lite.choices import require_place
from basic_lite.data.columns import KNOWN, plain_name
from basic_lite.data.folder_source import files_of, metadata_of, text_of
from basic_lite.data.images import ImageRef, locate
from basic_lite.data.json_source import as_table
from basic_lite.data.missing import folders_in, in_other_ending
from basic_lite.data.problems import BadImage, RecordProblem
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.data.table_source import AS_UTF8
from basic_lite.endings import JSON_ENDINGS, PICTURE_ENDINGS, TABLE_ENDINGS
from basic_lite.errors import UserError
from basic_lite.outside import open_file, parse_json
from basic_lite.recipe.schema import SourceSection
from basic_lite.sizes import number_of

_READ = "CSV, TSV, JSON, JSONL and parquet files are read, folders of pictures, and folders written by save_to_disk"
# What lies beside data and is none.
_BESIDE = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "package.json"}
# Bytes of a file that are looked at to tell a note from data.
_NOTE = 1 << 16
# Records that are looked at to find the folder of their pictures.
_LOOKED_AT = 20
# Files of spreadsheets and archives, and what makes data of them.
_SHEETS = dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods", ".numbers"), AS_UTF8)
_PACKED = dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack it first")
# Endings of texts that may be tables.
_TEXT_ENDINGS = (".txt", ".tab", ".psv", ".token", ".dat", "")


def source_of(
    path: str | Path, *, image_dir: str | Path | None = None, limit: int | None = None, also: Sequence[Path] = ()
) -> SourceSection:
    """The data source that a path means. Relative paths stay relative to the current folder.

    A file is read as its ending says. A folder may be one that `Dataset.save_to_disk` wrote, one with a metadata file,
    one with a single data file in it, or one of pictures with texts beside them. Where ``image_dir`` isn't given, the
    folder of the pictures is looked for around the data file, then in ``also``.

    Raises:
        UserError: there is nothing at that place, or nothing that can be read; says what is.
    """
    path = Path(os.path.expanduser(path))
    require_place(path)
    section = _of_folder(path) if path.is_dir() else _of_file(path)
    update: dict[str, Any] = {"limit": limit}
    if image_dir is not None:
        update["image_dir"] = Path(image_dir).as_posix()
    elif section.path or section.parquet:
        update["image_dir"] = image_dir_of(section, also)
    return section.model_copy(update=update)


def _of_file(path: Path) -> SourceSection:
    ending = path.suffix.lower()
    if ending in TABLE_ENDINGS + JSON_ENDINGS:
        return SourceSection(path=path.as_posix())
    if ending == ".parquet":
        return SourceSection(parquet=path.as_posix())
    mend = (_SHEETS | _PACKED).get(ending) or _by_content(path) or "name one of these"
    if ending in PICTURE_ENDINGS:
        mend = f"name the folder that the pictures are in, {path.parent.as_posix()}"
    raise UserError(f"{path}: this kind of file isn't read ({_READ}); {mend}.")


def _by_content(path: Path) -> str:
    """How a file that isn't called as data is should be called; empty: it is no data."""
    # Windows hides endings: a table that was saved as `list.csv` may be `list.csv.txt`.
    if Path(path.stem).suffix.lower() in TABLE_ENDINGS + JSON_ENDINGS:
        return f"if it is a table, rename it to {path.stem}"
    start = _start_of(path)
    if start.startswith(("{", "[")):
        return f"if it is JSON, rename it to {path.stem}.jsonl"
    if table := as_table(start, path.name):
        return f"rename it to {table}"
    return f"if it is a table, rename it to {path.stem}.csv" if path.suffix.lower() in _TEXT_ENDINGS else ""


def _start_of(path: Path) -> str:
    """The first text of a file; empty where it can't be read."""
    with suppress(OSError), open_file(path) as opened:
        return opened.read(_NOTE).decode("utf-8", "ignore").lstrip("\ufeff \n\r\t")
    return ""


def _of_folder(folder: Path) -> SourceSection:
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return SourceSection(saved=folder.as_posix())
    splits = sorted(one.parent.name for one in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").is_file() and splits:
        return SourceSection(saved=folder.as_posix(), split="train" if "train" in splits else splits[0])
    if metadata_of(folder, "train"):
        return SourceSection(folder=folder.as_posix())
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.name not in _BESIDE)
    tables = [one for one in files if one.suffix.lower() in TABLE_ENDINGS + JSON_ENDINGS]
    if any(one.suffix.lower() in JSON_ENDINGS for one in tables):
        tables = _without_notes(tables, folder)
    if len(tables) == 1:
        return _of_file(tables[0])
    if len(tables) > 1:
        raise UserError(
            f"{folder}: it has {len(tables)} data files ({', '.join(one.name for one in tables[:6])}"
            f"{', …' if len(tables) > 6 else ''}); name one of them, as in {tables[0].as_posix()}."
        )
    return _parquet_in(folder) or _pictures_in(folder)


def _without_notes(tables: list[Path], folder: Path) -> list[Path]:
    """Data files without those that only tell of one picture, or of counts, as img2dataset and Google write them."""
    pictures, texts, _ = files_of(folder)
    stems = {os.path.splitext(one)[0] for one in pictures}
    named = {one for one in tables if one.suffix.lower() in JSON_ENDINGS and _is_of_one(one.name, stems)}
    others = [one for one in tables if one not in named]
    if not any(text_of(one, texts) for one in pictures):
        return others if len(named) > 1 else tables
    return [one for one in others if one.suffix.lower() not in JSON_ENDINGS or not _is_note(one)]


def _is_of_one(name: str, stems: Collection[str]) -> bool:
    """Whether a file beside pictures is called as one of them, as cat.json, cat.jpg.json and cat.jpg.info.json are."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in stems for end in range(1, len(parts)))


def _is_note(file: Path) -> bool:
    """Whether a JSON file is one object that is no record, as of counts or settings."""
    try:
        with open_file(file) as opened:
            start = opened.read(_NOTE + 1)
        held = parse_json(start.decode("utf-8-sig")) if len(start) <= _NOTE else None
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and not any(
        plain_name(key) in KNOWN or isinstance(value, list) for key, value in held.items()
    )


def _parquet_in(folder: Path) -> SourceSection | None:
    """The parquet files of a folder, or of `data` in it, where the hub puts them; of several splits, train's."""
    for place in (folder, folder / "data"):
        found = sorted(place.glob("*.parquet"))
        chosen = [one for one in found if one.name.startswith("train")] or found
        if len(chosen) == 1:
            return _of_file(chosen[0])
        if chosen:
            name = "train*.parquet" if chosen[0].name.startswith("train") else "*.parquet"
            return SourceSection(parquet=f"{glob.escape(place.as_posix())}/{name}")
    return None


def _pictures_in(folder: Path) -> SourceSection:
    pictures, texts, _ = files_of(folder)
    if any(text_of(one, texts) for one in pictures):
        return SourceSection(folder=folder.as_posix())
    known = _SHEETS if pictures else _SHEETS | _PACKED
    sheets = (one for one in sorted(folder.iterdir()) if one.suffix.lower() in known)
    if sheet := next((one for one in sheets if not one.name.startswith((".", "~$"))), None):  # "~$": Excel has it open
        return _of_file(sheet)  # says what mends it
    if pictures:
        raise UserError(
            f"{folder}: it has {number_of(len(pictures), 'picture')}, but no text; "
            f"{_texts_by_other_names(folder, pictures, texts) or _how_to_write(Path(pictures[0]))}."
        )
    raise UserError(f"{folder}: there is no data in this folder ({_READ}); name another.")


def _how_to_write(picture: Path) -> str:
    return (
        f"write a text beside each ({picture.with_suffix('.txt').as_posix()} for {picture.as_posix()}), or one table "
        "captions.csv in the folder, with the columns image and caption"
    )


def _texts_by_other_names(folder: Path, pictures: Sequence[str], texts: Mapping[str, str]) -> str:
    """What mends a folder whose texts don't have the names that are looked for; empty: there is nothing like a text."""
    for picture in pictures[:_LOOKED_AT]:
        stem = os.path.splitext(picture)[0]
        for name in (f"{picture}.txt", f"{stem}.caption", f"{stem}.captions"):
            if os.path.isfile(folder / name):
                named = f"{stem}.txt"
                return f"{name} lies beside {picture}, and the text's name must be {named}; rename them all so"
    first = folder / pictures[0]
    of_first = (one.name for one in sorted(first.parent.glob("*.json")) if _is_of_one(one.name, {first.stem}))
    if name := next(of_first, ""):
        return (
            f"{name} lies beside {first.name}, and no text is read from there; write each picture's text into a file "
            f"of its own, as {first.stem}.txt"
        )
    for text in sorted(set(texts.values()))[:_LOOKED_AT]:
        if table := as_table(_start_of(folder / text), text):
            return f"{text} is a table by its first line; rename it to {table}, and name that file"
    if texts:
        text = sorted(texts.values())[0]
        return f"{text} has no picture of the same name; {_how_to_write(Path(pictures[0]))}"
    return ""


def image_dir_of(section: SourceSection, also: Sequence[Path] = ()) -> str | None:
    """The folder in which most of the first pictures lie; None where that is beside the file, or nowhere.

    Args:
        also: folders that are looked in besides those around the file.
    """
    try:
        records = load_records(section.model_copy(update={"limit": _LOOKED_AT}), root=Path.cwd())
    except UserError:
        return None  # whoever reads the source meets the same error
    found = folder_of(
        [image.name for image in _images(records)], Path(section.path or section.parquet or "").parent, also
    )
    return None if found is None else found.as_posix()


def folder_of(names: Sequence[str], beside: Path, also: Sequence[Path] = ()) -> Path | None:
    """The folder in which most of the first of some pictures lie; None where that is ``beside``, or nowhere.

    Args:
        beside: the folder of the file that names them.
        also: folders that are looked in besides those around it.
    """
    names = names[:_LOOKED_AT]
    if not names or not beside.is_dir():
        return None
    counts: dict[Path, int] = {}
    for folder in itertools.chain(_candidates(beside, names), also):
        counts[folder] = sum(_is_there(name, folder) for name in names)
        if counts[folder] == len(names):
            break
    best = max(counts, key=lambda folder: counts[folder])
    return None if counts[best] <= counts[beside] else best


def _images(records: Records) -> Iterator[ImageRef]:
    """Pictures that lie in files."""
    for index in range(len(records)):
        try:
            yield from (image for image in records[index].images if image.blob is None)
        except RecordProblem:
            continue


def _candidates(beside: Path, names: Sequence[str]) -> Iterator[Path]:
    yield beside
    with suppress(PermissionError):  # one may read a file in a folder that one may not list
        yield from sorted(one for one in beside.iterdir() if one.is_dir() and not one.name.startswith("."))
    above = Path(os.path.normpath(beside / ".."))
    yield above
    yield from (above / one for one in folders_in(str(above)))  # COCO's texts and pictures have a folder each
    absolute = [name for name in names if os.path.isabs(name)]
    if absolute:
        yield Path(os.path.commonpath([os.path.dirname(name) for name in absolute]))


def _is_there(name: str, folder: Path) -> bool:
    try:
        path = locate(ImageRef(name, str(folder)), must_exist=False)
    except BadImage:
        return False
    return os.path.isfile(path) or in_other_ending(path) is not None  # that is told once the folder is known
