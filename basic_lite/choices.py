"""Choices and paths that people give.

What was meant by one that isn't there: a usual other name, or the one that is spelled most like it; and what makes it,
where a command of this program does. And where files and folders may be written.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from basic_lite.errors import UserError
from basic_lite.printable import one_line

# What people call these. Spelling alone would take `gpu` for `cpu`.
_OTHER_NAMES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "full": "float32",
    "float": "float32",
    "4bit": "nf4",
    "4-bit": "nf4",
    "vicuna": "v1",
    "ask": "chat",
    "predict": "chat",
    "infer": "chat",
    "score": "eval",
    "test": "eval",
    "benchmark": "eval",
    "ls": "runs",
    "list": "runs",
    "help": "--help",
    "delete": "clean",
    "convert": "export",
    "merge": "export",
}

_NUMBER = re.compile(r"[0-9]+")
# Where `basic-lite demo` works, and what of it people name.
DEMO = Path("runs", "demo")
_OF_THE_DEMO = ("world", "stage1", "stage2")
# Where a relative path may begin that doesn't begin here. Further up another file may have the name by chance.
_ABOVE = (Path(".."), Path("..", ".."))


def meant(word: str, choices: Iterable[str]) -> str | None:
    """The choice that ``word`` was meant for; None where none is near."""
    choices, word = list(choices), word.strip().lower()
    if other := _OTHER_NAMES.get(word):
        return other if other in choices else None
    return next(iter(get_close_matches(word, choices, 1, 0.5)), None)


def require_one_of(name: str, choices: Iterable[str], key: str) -> None:
    """Refuse a name that is no choice. Recipes and options are checked when they are read; this is for programs.

    Raises:
        UserError: with the choice that was meant, if one is near.
    """
    if name not in (choices := list(choices)):
        near = meant(str(name), choices)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{key} is {name!r}, which is none of {', '.join(choices)}{hint}")


def mend_of_missing(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """What mends a path where nothing is; empty: nobody knows.

    The command that makes it, the folder above that a relative path begins in, or `did you mean PATH?`.

    Args:
        fits: as in ``meant_beside``.
    """
    full, demo = Path(os.path.abspath(path)), DEMO.absolute()
    made = next((demo / name for name in _OF_THE_DEMO if full.is_relative_to(demo / name)), demo)
    if full.is_relative_to(made) and not os.path.exists(made):
        return "`basic-lite demo` makes it, in a few minutes"
    for above in _ABOVE if not path.is_absolute() else ():
        if os.path.exists(above / path) and fits(above / path):
            return f"start the command in {above.as_posix()}, the folder that has it"
    return meant_beside(path, fits)


def require_questions_named(*, data: bool, held_out: bool) -> None:
    """Refuse an evaluation without questions, and one with two kinds of them.

    Args:
        data: somebody named a file.

    Raises:
        UserError: it is one of these.
    """
    if data == held_out:
        raise UserError("give --data FILE, or --held-out for the questions that the run kept; one of both")


def require_place(path: Path, following: Sequence[str] = ()) -> None:
    """Refuse a path where nothing is.

    Args:
        following: the words after it on the command line, which are keys with values, or the rest of its name.

    Raises:
        UserError: with what mends it.
    """
    if os.path.exists(path) and following and "=" not in following[0] and os.path.exists(following[0]):
        if len(following) == 1:
            raise UserError(
                f"{one_line(str(path))} and {one_line(following[0])} are named, and one place is taken; name one: a "
                "folder that holds both, or one data file."
            )
        # As a shell writes `photos/*` out.
        raise UserError(
            f"{one_line(str(path))} and {len(following)} more files are named, as a shell does with *; name one: the "
            f"folder that they are in ({path.parent.as_posix()}), or one data file."
        )
    if not os.path.exists(path):  # unlike pathlib's, it says no to a name that is too long
        if following and "=" not in following[0]:
            meant = f'"{path} {following[0]}"'
            raise UserError(
                f"{path}: there is no such file or folder; a name with spaces goes in quotes, as in {meant}."
            )
        raise UserError(f"{path}: there is no such file or folder; {mend_of_missing(path) or 'correct the path.'}")


def new_place(out: Path) -> Path:
    """The absolute path of a folder to write, links followed; nothing may be there but an empty folder.

    Raises:
        UserError: something is, or it can't be a folder.
    """
    try:
        place = out.resolve()
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
        file = next((one for one in place.parents if one.is_file()), None)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror or error}); choose another folder") from error
    if taken:
        raise UserError(f"{out} exists already; choose another folder, or move it away first")
    if file is not None:
        raise UserError(f"{out} can't be written, since {file} is a file; choose another folder")
    return place


def require_file_place(out: Path, example: str) -> None:
    """Refuse an `--out` that is a folder, or lies in one that isn't there.

    Args:
        example: a name for the file, for the message.

    Raises:
        UserError: it is one of these.
    """
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file, as in {(out / example).as_posix()}")
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it first")


def meant_beside(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """`did you mean PATH?` for a path where nothing is: a file or one of its folders is spelled a little otherwise.

    Empty where no name is near.

    Args:
        fits: whether what is at a path comes into question.
    """
    # The outermost folder that isn't there has the wrong name.
    wrong = next((one for one in reversed([path, *path.parents]) if not os.path.exists(one)), path)
    rest = path.relative_to(wrong)
    try:
        beside = [one.name for one in wrong.parent.iterdir() if fits(one / rest)]
    except OSError:
        return ""
    names = {name.lower(): name for name in beside if not name.startswith(".")}
    near = _nearest(wrong.name.lower(), names)
    return f"did you mean {(wrong.parent / names[near] / rest).as_posix()}?" if near else ""


def _nearest(word: str, names: Collection[str]) -> str | None:
    """The name that is spelled most like a word; of those that differ in numbers alone, the one of the nearest number.

    By its letters ``img_20.jpg`` would be nearer to ``img_0.jpg`` than ``img_1.jpg`` is.
    """
    near = get_close_matches(word, names, len(names) or 1)

    def distance(name: str) -> int:
        pairs = zip(_NUMBER.findall(name), _NUMBER.findall(word), strict=True)
        return sum(abs(int(one) - int(other)) for one, other in pairs)

    numbered = [name for name in near if _NUMBER.split(name) == _NUMBER.split(word)]
    return min(numbered, key=distance, default=next(iter(near), None))
