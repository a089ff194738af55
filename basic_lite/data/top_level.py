"""A JSON file that begins with an object: a record, or one object around all records, as COCO has it.

Told from the file's first megabyte, so that a file of any size is refused at once, with what would mend it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from basic_lite.console import python_line
from basic_lite.data.columns import COLUMNS, KNOWN, find_columns, plain_name
from basic_lite.data.problems import shorten
from basic_lite.data.turns import is_turns
from basic_lite.endings import ends_as_picture
from basic_lite.errors import UserError
from basic_lite.printable import one_line

# Bytes of a file that are looked at: its first ones, and its last ones for what comes behind a long list.
HEAD, TAIL = 1 << 20, 1 << 12

_SPACE = re.compile(r"[ \t\r\n]*")
# Keys of records that say less than a file's name or a text; `KNOWN` has the others.
_HALF_KNOWN = {"image_id", "sentences", "question_id"}
# Keys that are looked at to see whether they name pictures.
_NAMES = 3
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Records in Python, of the forms that everybody has: ``d`` is what the file holds, ``o`` what others hold.
_OF_COCO = (
    "({'image':n[a['image_id']],'caption':a['caption']} for n in [{i['id']:i['file_name'] for i in d['images']}] "
    "for a in d['annotations'])"
)
_OF_KARPATHY = (
    "({'image':'/'.join(filter(None,[i.get('filepath'),i['filename']])),'caption':s['raw']} for i in d['images'] "
    "for s in i['sentences'])"
)
_OF_VQA = (
    "({**a[x['question_id']],'image':'COCO_%s_%012d.jpg'%(d.get('data_subtype','train2014'),x['image_id']),"
    "'question':x['question']} for a in [{x['question_id']:x for x in o[0]['annotations']}] for x in d['questions'])"
)
_OF_NAMES = (
    "({'image':k,**(r if isinstance(r,dict) else {'caption':r})} for k,v in d.items() "
    "for r in ([v] if not isinstance(v,list) else [{'messages':v}] if {'from','role'}&{*sum(map(list,v[:1]),[])} "
    "else v))"
)


class _Top(NamedTuple):
    """What is seen of the first object.

    Attributes:
        entries: its keys with their values; of one that is cut off, the first value inside.
        closed: whether its end is seen.
        cut: whether what is looked at ends inside it.
        end: the position behind what was read of it.
    """

    entries: dict[str, Any]
    closed: bool
    cut: bool
    end: int


def spread(text: str, tail: str, whole: bool, asked: Mapping[str, str], name: str) -> bool:
    """Whether the first record of a file spans several lines.

    Args:
        text: the file's beginning, from its first "{" on.
        tail: its end.
        whole: whether ``text`` is all of it.
        asked: our names of columns to theirs, as the recipe has them.
        name: the file, for messages.

    Raises:
        UserError: it is no record but an object around the records; says how to get at them.
    """
    top = _top_of(text, whole)
    alone = top.closed and whole and not text[top.end :].strip()
    if (alone or top.cut) and not _is_record(top.entries, asked):
        _refuse_known_forms(top.entries, text + tail, name)
        _refuse_a_holder(top.entries, name)
        last = list(top.entries.values())[-1:]
        if top.cut and isinstance(next(iter(last), None), list | dict) and not _known(top.entries):
            raise UserError(
                f"{name}: the file begins with an object whose first keys are {shorten(list(top.entries))}, and none "
                "of these belongs to a record; write the records as one list, or one a line."
            )
    return "\n" in text[: top.end]


def require_flat(text: str, whole: bool, asked: Mapping[str, str], name: str) -> None:
    """Refuse a list whose entries have lists of records in them, as Visual Genome has one for each picture.

    Args:
        text: the file's beginning, from its "[" on.
        whole, asked, name: as in ``spread``.

    Raises:
        UserError: it is one; with a command that writes the records as one list.
    """
    start = _behind_space(text, 1)
    if asked or text[start : start + 1] != "{":
        return
    entry = _top_of(text[start:], whole).entries
    (path, one), *_ = [*_lists(entry), ((), None)]
    if one is None or len(path) > 1 or find_columns({}, entry).keys() - {"id"} or not _SIMPLE_KEY.fullmatch(path[0]):
        return
    if path == ("annotations",) and "result" in one:
        raise UserError(
            f"{name}: this is Label Studio's JSON export, where each task has its texts in lists, and a record has its "
            "picture and text side by side; export it again as JSON-MIN or CSV."
        )
    written = _written(f"(r for e in d for r in e['{path[0]}'])", name, called=path[0])
    raise UserError(
        f"{name}: each entry of the list has its records in a list of its own, {path[0]!r}. Write them, one "
        f"a line: {written}{_no_picture(one)}"
    )


def _top_of(text: str, whole: bool) -> _Top:
    """Read the first object as far as it is there. Broken JSON ends it; whoever reads the file tells where."""
    decoder, entries, end = json.JSONDecoder(), dict[str, Any](), 1
    while True:
        at = _behind_space(text, end)
        if text[at : at + 1] == "}" and not entries:
            return _Top(entries, True, False, at + 1)
        key = _value(decoder, text, at)
        colon = _behind_space(text, key[1]) if key else at
        if key is None or not isinstance(key[0], str) or text[colon : colon + 1] != ":":
            return _Top(entries, False, not whole and text.find("\n", at) < 0, end)
        at = _behind_space(text, colon + 1)
        value = _value(decoder, text, at)
        if value is None:
            if whole:
                return _Top(entries, False, False, colon + 1)
            entries[key[0]] = _first_inside(decoder, text, at)
            return _Top(entries, False, True, at + 1)
        entries[key[0]], end = value
        at = _behind_space(text, end)
        if text[at : at + 1] == "}":
            return _Top(entries, True, False, at + 1)
        if text[at : at + 1] != ",":
            return _Top(entries, False, not whole and at == len(text), end)
        end = at + 1


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _value(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int] | None:
    """The value at a position and the position behind it; None: it is broken or cut off."""
    try:
        return decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _first_inside(decoder: json.JSONDecoder, text: str, at: int, depth: int = 0) -> Any:
    """A value that is cut off, with the first value inside it alone; None: not even that is there."""
    sign, inside = text[at : at + 1], _behind_space(text, at + 1)
    if sign == "{":
        key = _value(decoder, text, inside)
        if key is None or not isinstance(key[0], str):
            return {}
        inside = _behind_space(text, _behind_space(text, key[1]) + 1)
    elif sign != "[":
        return None
    first = _value(decoder, text, inside)
    one = first[0] if first else _first_inside(decoder, text, inside, depth + 1) if depth < 2 else None
    return {key[0]: one} if sign == "{" else [one]  # type: ignore[index]


def _known(entries: Mapping[str, Any]) -> bool:
    return any(plain_name(key) in KNOWN for key in entries)


def _is_record(entries: Mapping[str, Any], asked: Mapping[str, str]) -> bool:
    """Whether an object is a record itself: it has a conversation, or two of picture, question and answer."""
    usable = [key for key, value in entries.items() if not _holds_objects(value)]
    found = find_columns(asked, usable)
    return "conversations" in found or len(found.keys() & {"image", "question", "answer"}) > 1


def _holds_objects(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and not is_turns(value)
    return isinstance(value, dict)


def _first_record(value: Any) -> dict[str, Any] | None:
    """The first of a list of records; None: it isn't one."""
    one = value[0] if isinstance(value, list) and value and not is_turns(value) else None
    return one if isinstance(one, dict) and (_known(one) or _HALF_KNOWN & one.keys()) else None


def _refuse_known_forms(entries: Mapping[str, Any], seen: str, name: str) -> None:
    """Refuse forms that everybody has, each with the line of Python that makes records of it.

    Texts under the names of their pictures, Karpathy's splits, VQA, COCO.
    """
    image, note = _first_record(entries.get("images")), _first_record(entries.get("annotations"))
    question = _first_record(entries.get("questions"))
    if entries and all(map(ends_as_picture, itertools.islice(entries, _NAMES))):
        raise UserError(
            f"{name}: the file is one object with what belongs to each picture under its name "
            f"({shorten(next(iter(entries)))}, …), and a record has both. Write records, one a line: "
            f"{_written(_OF_NAMES, name)}"
        )
    if image is not None and "sentences" in image:
        raise UserError(
            f"{name}: this has the form of Karpathy's splits, one object whose `images` have several sentences each, "
            f"and a record is one picture with one text. Write them, one a line: "
            f"{_written(_OF_KARPATHY, name)}"
        )
    answered = note and ("multiple_choice_answer" in note or {"question_id", "answers"} <= note.keys())
    if (question and "image_id" in question) or answered:
        files = (name, "ANNOTATIONS.json") if question else ("QUESTIONS.json", name)
        raise UserError(
            f"{name}: this has the form of VQA, whose questions and answers are in two files, and a record has both. "
            "Write records, one a line, with the names of COCO's pictures: "
            f"{_written(_OF_VQA, name, *files)}"
        )
    coco = (image is not None and "file_name" in image) or (
        note is not None and "image_id" in note and "images" in entries
    )
    if coco:
        mend = (
            f"a record is one picture with its text. This joins them, one record a line: {_written(_OF_COCO, name)}"
            if '"caption"' in seen
            else "no caption is at its beginning or its end. A model learns from texts: take the file of captions "
            "(captions_train2017.json), or write one record a line with image and caption."
        )
        raise UserError(
            f"{name}: this has the form of COCO, one object with the lists `images` and `annotations`, and {mend}"
        )


def _refuse_a_holder(entries: Mapping[str, Any], name: str) -> None:
    """Refuse an object that holds records in a list, or under a name for each."""
    found = list(_lists(entries))
    named = [value for value in entries.values() if isinstance(value, dict)]
    if not found and (not named or len(named) < len(entries) or not all(map(_known, named[:3]))):
        return
    (path, one), *more = found or [((), named[0])]
    if found:
        lists = one_line(", ".join(repr(".".join(keys)) for keys, _ in [(path, one), *more][:5]), 120)
        where = f"its records are in the list{'s' * bool(more)} {lists}"
        records = "d" + "".join(f"['{key}']" for key in path)
    else:
        where = f"each record has a name there ({shorten(next(iter(entries)))}, …)"
        records = "d.values()"
    mend = "Write that list alone into a file"
    if all(_SIMPLE_KEY.fullmatch(key) for key in path):
        mend = f"Write the list alone, one record a line: {_written(records, name, called='_'.join(path) or 'list')}"
    raise UserError(
        f"{name}: the file's top level is an object, not a list of records; {where}. {mend}{_no_picture(one)}"
    )


def _no_picture(one: Mapping[str, Any]) -> str:
    """What to say of records that don't name their picture; empty: they do."""
    if "image" in find_columns({}, one):
        return ""
    return f". The records have no name of a picture file, only {shorten(list(one), 120)}; add it to each, as `image`."


def _lists(entries: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The lists of records, in the object or one deeper: the keys that lead there, and the first record."""
    for key, value in entries.items():
        if (one := _first_record(value)) is not None:
            # VQA's answers of several people are one record's.
            if plain_name(key) not in COLUMNS["answer"] or "image" in find_columns({}, one):
                yield (key,), one
        elif isinstance(value, dict):
            deeper = ((inner, _first_record(held)) for inner, held in value.items())
            yield from (((key, inner), first) for inner, first in deeper if first is not None)


def _written(records: str, name: str, *files: str, called: str = "") -> str:
    """A command that writes records, one a line, into a new file beside ``name``, where their pictures are found.

    Args:
        records: as ``_OF_COCO``.
        files: those that are read, if it isn't ``name`` alone.
        called: what is added to the new file's name.
    """
    code = (
        "import json,sys; d,*o=(json.load(open(f,'rb')) for f in sys.argv[1:-1]); "
        f"open(sys.argv[-1],'x').writelines(json.dumps(r)+chr(10) for r in {records})"
    )
    path = Path(name)
    called = called or "records" * (path.suffix.lower() == ".jsonl")
    target = path.with_name(f"{'_'.join(filter(None, (path.stem, called)))}.jsonl").as_posix()
    return python_line(code, *(files or [name]), target)
