"""The command's words after the model: pictures, then perhaps a question."""

import os
from collections.abc import Sequence
from pathlib import Path

from basic_lite.console import command_line
from basic_lite.data.images import ImageRef, check_image
from basic_lite.data.problems import RecordProblem
from basic_lite.errors import UserError
from basic_lite.tools.chat.words import PICTURE_ENDING, names_picture, require_there, split_words


def pictures_and_question(words: Sequence[str], question: str | None) -> tuple[list[ImageRef], str | None]:
    """Split ``words`` into pictures and a question.

    All are pictures, but for the last: where it is no file and doesn't look like one, it is the question.

    Args:
        question: the value of ``--question``; then all words are pictures.

    Raises:
        UserError: a picture is missing or can't be read.
    """
    pictures, asked = split_words(words, question)
    if question is not None:
        _check_option(pictures, question)
    return [picture(word) for word in pictures], asked


def _check_option(words: Sequence[str], question: str) -> None:
    """Refuse a picture in the place of ``--question``'s value, and a value without quotes: ``words`` has its rest."""
    if os.path.isfile(question) and is_picture(question):
        raise UserError(f"--question is followed by the question, and {question} is a picture; put it before")
    rest = [word for word in words if not names_picture(word)]
    if rest and not any(" " in word for word in [question, *rest]):
        order = command_line([*(word for word in words if names_picture(word)), "--question"])
        raise UserError(f'put a question of several words in quotes: {order} "{" ".join([question, *rest])}"')


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures do, or is that of a file which can be read as one."""
    if PICTURE_ENDING.search(name):
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
    require_there(name)
    if path.is_dir():
        ending = next((one.suffix for one in sorted(path.iterdir()) if PICTURE_ENDING.search(one.name)), ".jpg")
        raise UserError(f"{name} is a folder; name pictures in it, as in {path / '*'}{ending}")
    image = ImageRef.of_file(path)
    require_picture(image, str(name))
    return image


def require_picture(image: ImageRef, name: str) -> None:
    """Refuse a picture that can't be decoded.

    Args:
        name: that the person gave.

    Raises:
        UserError: it can't.
    """
    try:
        check_image(image, "open")
    except RecordProblem as problem:
        raise UserError(f"{name} can't be used as a picture: {problem.what}; {mend_of(problem)}") from problem


def mend_of(problem: RecordProblem) -> str:
    """What mends a picture that belongs to no record."""
    mend = problem.mend.removesuffix(", or leave the record out")
    return f"{mend}, or take another picture" if mend else "take another picture"
