"""The command's words after the model: pictures, then perhaps a question."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from basic_lite.choices import mend_of_missing
from basic_lite.console import command_line
from basic_lite.data.images import ImageRef, check_image
from basic_lite.data.pictures import PICTURE_ENDINGS
from basic_lite.data.problems import RecordProblem
from basic_lite.errors import UserError

_PICTURE_ENDING = re.compile(rf"({'|'.join(map(re.escape, PICTURE_ENDINGS))})$", re.IGNORECASE)
_ANY_ENDING = re.compile(r"\.\w{2,5}$")


def pictures_and_question(words: Sequence[str], question: str | None) -> tuple[list[ImageRef], str | None]:
    """Split ``words`` into pictures and a question.

    All are pictures, but for the last: where it is no file and doesn't look like one, it is the question.

    Args:
        question: the value of ``--question``; then all words are pictures.

    Raises:
        UserError: a picture is missing or can't be read.
    """
    _check_spaces(words, question)
    words, optional = list(words), question is None
    if optional and words and not _names_picture(words[-1]):
        question = words.pop()
    if not all(word.strip() for word in [*words, *([] if question is None else [question])]):
        raise UserError("the question is empty; write one, or leave it out to be asked for it")
    if optional:
        _check_order(words, question)
    elif question is not None:
        _check_option(words, question)
    return [picture(word) for word in words], question


def _check_spaces(words: Sequence[str], question: str | None) -> None:
    """Refuse the name of a file that has fallen apart at its spaces."""
    for start, end in itertools.combinations(range(len(words) + 1), 2):
        name, parts = " ".join(words[start:end]), words[start:end]
        if len(parts) > 1 and os.path.isfile(name) and not all(map(os.path.exists, parts)):
            whole = [*words[:start], name, *words[end:]]
            pictures = [word for word in whole if _names_picture(word)]
            asked = " ".join(word for word in whole if word not in pictures) if question is None else question
            option = " --question" * (question is not None)
            rest = f'{option} "{asked}"' if asked else ""
            raise UserError(f"put a name with spaces in quotes: {command_line(pictures)}{rest}")


def _check_order(words: list[str], question: str | None) -> None:
    """Refuse a question without quotes, or before the pictures."""
    stray = next((n for n, word in enumerate(words) if not _names_picture(word)), None)
    if stray is None:
        return
    rest = [*words[stray:], *([] if question is None else [question])]
    pictures = [word for word in rest if os.path.exists(word) or _PICTURE_ENDING.search(word)]
    asked = " ".join(word for word in rest if word not in pictures)
    if pictures:
        order = command_line([*words[:stray], *pictures])
        raise UserError(f'pictures first, then the question: {order} "{asked}"')
    raise UserError(f'put a question of several words in quotes: "{asked}"')


def _check_option(words: list[str], question: str) -> None:
    """Refuse a picture in the place of ``--question``'s value, and a value without quotes: ``words`` has its rest."""
    if os.path.isfile(question) and is_picture(question):
        raise UserError(f"--question is followed by the question, and {question} is a picture; put it before")
    rest = [word for word in words if not _names_picture(word)]
    if rest and not any(" " in word for word in [question, *rest]):
        order = command_line([*(word for word in words if _names_picture(word)), "--question"])
        raise UserError(f'put a question of several words in quotes: {order} "{" ".join([question, *rest])}"')


def _names_picture(word: str) -> bool:
    return os.path.exists(word) or looks_like_path(word)


def looks_like_path(word: str) -> bool:
    """Whether a word that names no file was meant to: it ends as pictures do, or is one word as paths are."""
    word = word.strip()
    if _PICTURE_ENDING.search(word):
        return True
    separated = any(mark in word for mark in {"/", os.sep})
    return not re.search(r"\s", word) and (separated or bool(_ANY_ENDING.search(word)))


def missing_pictures(words: Sequence[str]) -> list[str]:
    """The words, if they are all named as pictures and some don't exist: these; else none."""
    named = bool(words) and all(_PICTURE_ENDING.search(word) for word in words)
    return [word for word in words if not os.path.exists(os.path.expanduser(word))] if named else []


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures do, or is that of a file which can be read as one."""
    if _PICTURE_ENDING.search(name):
        return True
    if not os.path.isfile(os.path.expanduser(name)):
        return False
    try:
        picture(name)
    except UserError:
        return False
    return True


def picture(name: str | Path) -> ImageRef:
    """The picture at a path.

    Raises:
        UserError: there is none, or it can't be decoded.
    """
    path = Path(name).expanduser()
    if not os.path.exists(path):  # unlike pathlib's, it says no to a name that is too long
        raise UserError(f"there is no picture {name}; {mend_of_missing(path) or 'correct its path'}")
    if path.is_dir():
        raise UserError(f"{name} is a folder; name pictures in it, as in {path / '*.jpg'}")
    image = ImageRef.of_file(path)
    try:
        check_image(image, "open")
    except RecordProblem as problem:
        raise UserError(f"{name} can't be used as a picture: {problem.what}; name another file") from problem
    return image
