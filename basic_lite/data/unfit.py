"""What a record may have that can't be trained on, and would be left out or learned wrongly if nobody said so."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from basic_lite.data.columns import plain_name
from basic_lite.data.pictures import is_filled, shown
from basic_lite.data.problems import BadRecord, shorten
from basic_lite.data.record import ROLES, Role
from basic_lite.endings import PICTURE_ENDINGS

_NO_MEDIA = "videos and sound aren't trained"
# Names of columns, and of keys in a turn or in a part of one, that hold a video or sound.
_MEDIA = re.compile(r"(?:input_)?(video|audio)s?(?:_(?:path|file|url|file_name)s?)?")
_MEDIA_MARK = re.compile(r"<(?:video|audio)>")
# Where LLaMA-Factory and TRL say whether an answer is a good one.
_VERDICTS = ("label", "kto_tag")
# A name with one of these words is a picture's; a file's name may be one's.
_PICTURE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"}
_FILE_WORDS = {"file", "files", "filename", "filenames", "path", "paths"}
# As Qwen-VL and ms-swift write a picture into a text. HTML's <img> has no end.
_PICTURE_IN_TEXT = re.compile(
    rf"<img>[^<>]{{1,1000}}(?:{'|'.join(map(re.escape, PICTURE_ENDINGS))})[^<>]{{0,1000}}</img>", re.IGNORECASE
)
_DIGITS = "0123456789"
# To such a question false isn't a verdict on the answer.
_YES_OR_NO = {"yes", "no", "true", "false"}


class _Names(NamedTuple):
    """Names of a record's columns that need a look."""

    media: tuple[str, ...]
    verdicts: tuple[str, ...]
    chosen: str | None
    rejected: str | None
    pictures: tuple[str, ...]


@lru_cache(maxsize=4096)
def _names(present: tuple[str, ...]) -> _Names:
    plain = {name: plain_name(name) for name in present}
    of = {one: name for name, one in plain.items()}
    return _Names(
        media=tuple(name for name, one in plain.items() if _MEDIA.fullmatch(one)),
        verdicts=tuple(name for name, one in plain.items() if one in _VERDICTS),
        chosen=of.get("chosen"),
        rejected=of.get("rejected"),
        pictures=tuple(name for name in present if _words_of(name) & (_PICTURE_WORDS | _FILE_WORDS)),
    )


def _words_of(name: str) -> set[str]:
    return {word.rstrip(_DIGITS) or word for word in plain_name(name).split("_")}


def _of(row: Mapping[str, Any]) -> _Names:
    return _names(tuple(name for name in row if isinstance(name, str)))


def looked_at(present: Iterable[str]) -> tuple[str, ...]:
    """The columns that the functions here look at, of those that are there."""
    names = _names(tuple(present))
    held = (*names.media, *names.verdicts, names.chosen, names.rejected, *names.pictures)
    return tuple(name for name in held if name is not None)


def holding_files(present: Iterable[str]) -> tuple[str, ...]:
    """Those of the columns that may hold whole pictures, videos or sound."""
    names = _names(tuple(present))
    return (*names.media, *names.pictures)


def refuse_unfit(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Refuse a record with a video or sound, one of a good and a bad answer, and one whose answer is marked as bad.

    Args:
        columns: our names to the row's; a column that is one of ours means what ours means.

    Raises:
        BadRecord: names the column.
    """
    names, used = _of(row), set(columns.values())
    _refuse_media(row, (name for name in names.media if name not in used), "it")
    chosen, rejected = names.chosen, names.rejected
    if (
        chosen is not None
        and rejected is not None
        and chosen not in used
        and is_filled(row[rejected])
        # Flags and scores are no answers.
        and all(isinstance(row[one], (str, list, dict)) for one in (chosen, rejected))
        and _role_of(_last_turn(row, columns)) != "gpt"
    ):
        raise BadRecord(
            f"it has an answer that is preferred ({chosen!r}) and one that isn't ({rejected!r}), and only single "
            "answers are learned",
            _good_answer(columns, row[chosen], chosen, rejected),
        )
    for name in names.verdicts:
        if name not in used and _is_bad(plain_name(name), row[name]) and not _says_yes_or_no(row, columns):
            raise BadRecord(
                f"its answer is marked as a bad one ({name!r} is {shorten(row[name])}), and every answer is learned",
                f"take the record out; if {name!r} means something else, rename it",
            )


def _last_turn(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    turns = row.get(columns.get("conversations", ""))
    last = turns[-1] if isinstance(turns, (list, tuple)) and turns else None
    return last if isinstance(last, Mapping) else {}


def _role_of(turn: Mapping[str, Any]) -> Role | None:
    return ROLES.get(str(turn.get("from") or turn.get("role")).strip().lower())


def _says_yes_or_no(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    last = _last_turn(row, columns)
    answer = row.get(columns.get("answer", "")) or last.get("value") or last.get("content")
    return isinstance(answer, str) and answer.strip().strip(".!").lower() in _YES_OR_NO


def _good_answer(columns: Mapping[str, str], value: Any, chosen: str, rejected: str) -> str:
    """How to train on the preferred answers."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    if isinstance(first, Mapping) and _role_of(first) in ("human", "system"):
        return f"data.train.columns.conversations={chosen} learns the preferred answers"
    if "conversations" in columns:
        return f"add the preferred answer to the conversation as its last turn, and take {rejected!r} out"
    if "question" in columns:
        return f"data.train.columns.answer={chosen} learns the preferred answers"
    if isinstance(value, (list, tuple)):
        return f"data.train.columns.conversations={chosen} learns the preferred answers"
    return f"name the columns of questions and answers: data.train.columns.question=NAME, .answer={chosen}"


def _is_bad(name: str, value: Any) -> bool:
    if name == "label":
        return value is False
    return value is False or (isinstance(value, (int, str)) and str(value).strip().lower() in ("0", "false"))


def _refuse_media(held: Mapping[str, Any], names: Iterable[str], whose: str) -> None:
    for name in names:
        value = held[name]
        if is_filled(value) and not isinstance(value, (bool, int, float)):
            raise BadRecord(
                f"{whose} has a video or sound ({name!r}: {shown(value)})",
                f"{_NO_MEDIA}; take the record out, or only {name!r} if the answers don't need it",
            )


def refuse_media_in(held: Mapping[str, Any], number: int) -> None:
    """Refuse a turn, or a part of one, that holds a video or sound.

    Raises:
        BadRecord: names the turn.
    """
    kind = held.get("type")
    if isinstance(kind, str) and _MEDIA.fullmatch(kind):
        raise BadRecord(f"turn {number} has a part of type {kind}", f"{_NO_MEDIA}; take the record out")
    _refuse_media(held, _of(held).media, f"turn {number}")


def refuse_marks(text: str, number: int, row: Mapping[str, Any]) -> None:
    """Refuse a question whose text stands for a video, for sound, or for a picture in a way that isn't read.

    Args:
        row: the whole record; only one with a column for videos or sound means them with its marks.

    Raises:
        BadRecord: names the turn.
    """
    if "<" not in text:
        return
    if (found := _MEDIA_MARK.search(text)) and _of(row).media:
        raise BadRecord(f"turn {number} has {found[0]} in its text", f"{_NO_MEDIA}; take the record out")
    if found := _PICTURE_IN_TEXT.search(text):
        raise BadRecord(
            f"turn {number} names a picture in its text ({shorten(found[0])}), where none is read",
            "list the files in a column images, and write <image> in their places",
        )


def refuse_unread_pictures(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Refuse a record that has no picture yet, and a column that holds one by its name and its value.

    Raises:
        BadRecord: names the column, and the key that says what it is.
    """
    used = set(columns.values())
    for name in _of(row).pictures:
        if name in used or not _is_picture(row[name], by_name=bool(_words_of(name) & _PICTURE_WORDS)):
            continue
        raise BadRecord(
            f"it has no picture, but {name!r} looks like one ({shown(row[name])})",
            f"set data.train.columns.image={name} if it is the record's picture, or remove {name!r}",
        )


def refuse_numbered_pictures(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Refuse a record with another picture in a column such as image2 beside that of its pictures.

    Raises:
        BadRecord: names both columns.
    """
    used, own = set(columns.values()), columns.get("image", "")
    for name in _of(row).pictures if own else ():
        alike = plain_name(name).rstrip(f"{_DIGITS}_") == plain_name(own).rstrip(f"{_DIGITS}_")
        if name not in used and alike and row[name] != row[own] and _is_picture(row[name], by_name=True):
            raise BadRecord(
                f"it has a picture under {name!r} too ({shown(row[name])}), and only {own!r} is read",
                "list all of them under `images` (JSON or parquet); or leave the others out with "
                f"data.train.columns.image={own}",
            )


def holds_pictures(name: str, value: Any) -> bool:
    """Whether a column of a picture's usual names holds pictures: `path` and `file_name` may be those of any file."""
    words = _words_of(name)
    return bool(words & {"image", "images"}) or _is_picture(value, by_name=bool(words & _PICTURE_WORDS))


def _is_picture(value: Any, *, by_name: bool) -> bool:
    """Whether a value looks like a picture's path, address or bytes, or like a list of these."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_picture(one, by_name=by_name) for one in value)
    if isinstance(value, Mapping):
        return by_name and (value.get("bytes") is not None or _is_picture(value.get("path"), by_name=by_name))
    if not isinstance(value, str):
        return by_name and (isinstance(value, bytes) or hasattr(value, "as_py"))
    text = value.strip().lower()
    if text.startswith("data:image/") or text.partition("?")[0].endswith(PICTURE_ENDINGS):
        return "\n" not in text
    return by_name and text.startswith(("http://", "https://", "file://"))
