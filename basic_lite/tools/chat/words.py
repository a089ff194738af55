"""The command's words after the model, looked at before anything heavy is imported: what can be told by names alone."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from basic_lite.choices import meant_beside, mend_of_missing
from basic_lite.console import command_line
from basic_lite.endings import DATA_ENDINGS, PICTURE_ENDINGS
from basic_lite.errors import UserError
from basic_lite.recipe.rules import sources_in
from basic_lite.training.bundle_files import look_at_bundle

PICTURE_ENDING = re.compile(rf"({'|'.join(map(re.escape, PICTURE_ENDINGS))})$", re.IGNORECASE)
_ANY_ENDING = re.compile(r"\.\w{2,5}$")


def split_words(words: Sequence[str], question: str | None, run: str = "") -> tuple[list[str], str | None]:
    """The names of pictures, and the question.

    Args:
        question: the value of ``--question``; then all words are pictures.
        run: that is asked, as for ``require_there``.

    Raises:
        UserError: a name with spaces has no quotes, the order is wrong, the question is empty, or a picture is missing.
    """
    _check_spaces(words, question)
    words, optional = list(words), question is None
    if optional and words and not names_picture(words[-1]):
        question = words.pop()
    if not all(word.strip() for word in [*words, *([] if question is None else [question])]):
        raise UserError("the question is empty; write one, or leave it out to be asked for it")
    if optional:
        _check_order(words, question)
    for word in words:
        if PICTURE_ENDING.search(word):
            require_there(word, run)
    return words, question


def require_there(name: str | Path, run: str = "") -> None:
    """Refuse the name of a picture where nothing is, or that of a file of data.

    Args:
        run: whose own pictures may be meant.

    Raises:
        UserError: nothing is there, or it is no picture.
    """
    if not str(name).strip():
        raise UserError("the name of a picture is empty; write one")
    path = Path(name).expanduser()
    if path.suffix.lower() in DATA_ENDINGS:
        raise UserError(
            f"{name} is a file of data and no picture; give it with --data: `basic-lite eval` asks its questions, and "
            "`basic-lite inspect` looks at its pictures"
        )
    if not os.path.exists(path):  # unlike pathlib's, it says no to a name that is too long
        if "://" in str(name):
            raise UserError(f"{name} is an address, and pictures are files; download it, and name the file")
        parts = str(name).split()
        several = len(parts) > 1 and all(map(os.path.exists, parts))
        apart = "these are several in one pair of quotes: quote each on its own" if several else ""
        raise UserError(f"there is no picture {name}; {apart or _meant(path, run) or 'correct its path'}")


def _meant(name: Path, run: str) -> str:
    """`did you mean PATH?` for the name of a picture; empty: none is near. One of a run's own data needs no folder."""
    try:
        data = look_at_bundle(Path(run).expanduser()).recipe.data if run else None
    except UserError:  # no run
        data = None
    sources = [*sources_in(data.train), *sources_in(data.eval)] if data is not None else []
    own = [Path(one.image_dir or one.folder or Path(one.path or "").parent, name).expanduser() for one in sources]
    found = next((f"did you mean {path.as_posix()}?" for path in own if os.path.exists(path)), "")
    return found or mend_of_missing(name) or next(filter(None, map(meant_beside, own)), "")


def _check_spaces(words: Sequence[str], question: str | None) -> None:
    """Refuse the name of a file that has fallen apart at its spaces."""
    for start, end in itertools.combinations(range(len(words) + 1), 2):
        name, parts = " ".join(words[start:end]), words[start:end]
        if len(parts) > 1 and os.path.isfile(name) and not all(map(os.path.exists, parts)):
            whole = [*words[:start], name, *words[end:]]
            pictures = [word for word in whole if names_picture(word)]
            asked = " ".join(word for word in whole if word not in pictures) if question is None else question
            option = " --question" * (question is not None)
            rest = f'{option} "{asked}"' if asked else ""
            raise UserError(f"put a name with spaces in quotes: {command_line(pictures)}{rest}")


def _check_order(words: list[str], question: str | None) -> None:
    """Refuse a question without quotes, or before the pictures."""
    stray = next((n for n, word in enumerate(words) if not names_picture(word)), None)
    if stray is None:
        return
    rest = [*words[stray:], *([] if question is None else [question])]
    pictures = [word for word in rest if os.path.exists(word) or PICTURE_ENDING.search(word)]
    asked = " ".join(word for word in rest if word not in pictures)
    if pictures:
        order = command_line([*words[:stray], *pictures])
        raise UserError(f'pictures first, then the question: {order} "{asked}"')
    raise UserError(f'put a question of several words in quotes: "{asked}"')


def names_picture(word: str) -> bool:
    return os.path.exists(word) or looks_like_path(word)


def looks_like_path(word: str) -> bool:
    """Whether a word that names no file was meant to: it ends as pictures do, or is one word as paths are."""
    word = word.strip()
    if PICTURE_ENDING.search(word):
        return True
    separated = any(mark in word for mark in {"/", os.sep})
    return not re.search(r"\s", word) and (separated or bool(_ANY_ENDING.search(word)))


def missing_pictures(words: Sequence[str]) -> list[str]:
    """The words, if they are all named as pictures and some don't exist: these; else none."""
    named = bool(words) and all(PICTURE_ENDING.search(word) for word in words)
    return [word for word in words if not os.path.exists(os.path.expanduser(word))] if named else []
