"""Which column of the data is which of ours: what the recipe maps, else the column that has a usual name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from basic_lite.console import command_line
from basic_lite.data.problems import nearest
from basic_lite.errors import UserError

# What describes a picture, and answers no question where another column is meant to.
CAPTIONS = ("caption", "captions", "description", "text", "label")
# Our names, each with the names it is known by elsewhere; of several that are there, the first is taken.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    # `texts` is The Cauldron's.
    "conversations": ("conversations", "conversation", "messages", "texts"),
    "image": (
        "image", "images", "file_name", "file_names", "filename", "file", "image_path", "image_file", "path",
        "picture", "pictures", "photo", "photos", "img", "image_url",
    ),
    "question": ("question", "questions", "instruction", "query", "prompt", "input"),
    # VQA v2 has the commonest of its `answers` as `multiple_choice_answer`.
    "answer": (
        "answer", "multiple_choice_answer", "answers", "response", "output", "completion", *CAPTIONS,
    ),
    "question_type": ("question_type",),
    # Of LLaMA-Factory's formats: more of the question, the system prompt, and the turns before.
    "input": ("input",),
    "system": ("system",),
    "history": ("history",),
}  # fmt: skip

# Says which part of the data a record belongs to. Nothing chooses by it.
SPLIT = "split"
# Columns with the options of a question: one with all of them, or one for each (MMBench's A, B, C, D).
_OPTIONS = ("choices", "options", "answer_choices")
_BEFORE_LETTERS = ("", "option_", "choice_")
_LETTERS = "abcdefghij"
# What is a number, holds pictures, or says something about them.
_NO_TEXT = re.compile(
    r"(.*_)?(idx|index|ids?|width|height|path|file|file_?name|url)|(image|img|picture|photo)s?(_?(path|file|name|url|id|width|height|size|bytes|\d+))*s?"
)

TEXTS = {name for ours in ("conversations", "question", "answer") for name in COLUMNS[ours]}
# The names that tell a record, or a table's header. VQA's files have all of their records in a list `questions`.
KNOWN = {name for names in COLUMNS.values() for name in names} - {"questions", "texts"}

# Beside a conversation, `text` or `path` mean something else; only these keep their meaning.
_BESIDE_A_CONVERSATION = {
    "id": COLUMNS["id"],
    "conversations": COLUMNS["conversations"],
    "image": ("image", "images"),
    "answer": ("answer", "answers"),
    "question_type": COLUMNS["question_type"],
    "system": COLUMNS["system"],
}


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A column's name as it is compared: "File Name" is `file_name`."""
    return "_".join(name.strip().lower().replace("-", " ").split())


@lru_cache(maxsize=4096)
def _found(asked: tuple[tuple[str, str], ...], present: tuple[str, ...]) -> Mapping[str, str]:
    names: dict[str, str] = {}
    for name in present:
        names.setdefault(plain_name(name), name)
    # These mean something beside or without certain others alone.
    if "answers" not in names:
        names.pop("multiple_choice_answer", None)
    if names.keys() & {*COLUMNS["question"], "caption", "captions", "description"} - {"questions"}:
        names.pop("questions", None)
    found = {ours: theirs for ours, theirs in asked if theirs in present}
    # A map that names question or answer means those, even where a conversation is there too.
    pairs = {"question", "answer"} & found.keys() and "conversations" not in found
    talks = [one for one in COLUMNS["conversations"] if one in names]
    # A list of captions may be called so, too.
    if talks == ["texts"] and names.keys() & {*COLUMNS["question"], *COLUMNS["answer"]}:
        talks = []
    talk = "conversations" in found or bool(talks and not pairs)
    usual = _BESIDE_A_CONVERSATION if talk else {**COLUMNS, "conversations": ()}
    taken = set(found.values())
    for ours, candidates in usual.items():
        theirs = next((names[one] for one in candidates if one in names and names[one] not in taken), None)
        if ours not in dict(asked) and theirs is not None:
            found[ours] = theirs
            taken.add(theirs)
    if plain_name(found.get("question", "")) != "instruction":
        found.pop("input", None)  # only alpaca's question goes on in `input`
    return found


def find_columns(asked: Mapping[str, str], present: Iterable[str]) -> Mapping[str, str]:
    """Our names to theirs, of those that are there. Mapped names that aren't there are left out."""
    return _found(tuple(asked.items()), tuple(name for name in present if isinstance(name, str)))


def picture_columns(columns: Mapping[str, str], present: Iterable[str]) -> tuple[str, ...]:
    """The columns in which a record's pictures may be, the first choice first.

    Args:
        columns: our names to theirs. A picture column of a name that isn't usual is the only one.
    """
    first = columns.get("image")
    if first is None or plain_name(first) not in COLUMNS["image"]:
        return () if first is None else (first,)
    usual = _BESIDE_A_CONVERSATION if "conversations" in columns else COLUMNS
    names = {plain_name(name): name for name in present if isinstance(name, str) and name not in columns.values()}
    return (first, *(names[one] for one in usual["image"] if one in names))


def require_columns(asked: Mapping[str, str], present: Sequence[str], name: str) -> dict[str, str]:
    """Our names to theirs, for a source whose records all have the same columns.

    Args:
        name: the source, for messages.

    Raises:
        UserError: a mapped column isn't there, or nothing there is an answer or a conversation.
    """
    listed = ", ".join(present)
    for ours, wanted in asked.items():
        if wanted not in present:
            raise UserError(
                f"{name}: there is no column {wanted!r}{nearest(wanted, present)}; it has {listed}. "
                f"Correct columns.{ours} of this data source."
            )
    found = dict(find_columns(asked, present))
    if not has_text(found) and not candidates("answer", present):
        raise UserError(
            f"{name}: none of its columns ({listed}) can be the text to learn; add a column answer, or caption."
        )
    if not has_text(found):
        raise UserError(
            f"{name}: none of its columns ({listed}) has a name that says which is the text; rename them to image and "
            f"answer, or map them with columns.image and columns.answer (or columns.question, columns.conversations) "
            f"of this data source, as in {mapping_example(found, present)}."
        )
    return found


def has_text(found: Mapping[str, str]) -> bool:
    """Whether one of the columns that are known holds a text to learn."""
    return bool(found.keys() & {"conversations", "question", "answer"})


@lru_cache(maxsize=4096)
def _options_of(present: tuple[str, ...]) -> tuple[str, ...]:
    names = {plain_name(name): name for name in present}
    if held := [names[one] for one in _OPTIONS if one in names]:
        return tuple(held[:1])
    for before in _BEFORE_LETTERS:
        lettered = [names[before + letter] for letter in _LETTERS if before + letter in names]
        if before + "a" in names and before + "b" in names:
            return tuple(lettered)
    return ()


def options_columns(present: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold the options of a question: none, one with all of them, or one for each."""
    return _options_of(tuple(name for name in present if isinstance(name, str)))


def candidates(ours: str, present: Sequence[str]) -> list[str]:
    """The columns that may be meant for one of ours, for hints: no options, no `split`, and for a text no pictures."""
    known = {*options_columns(present), *(name for name in present if plain_name(name) in (*_OPTIONS, SPLIT))}
    free = [name for name in present if name not in known]
    if ours == "image":
        return free
    names = COLUMNS["image"]
    return [one for one in free if plain_name(one) not in names and not _NO_TEXT.fullmatch(plain_name(one))]


def mapping_example(found: Mapping[str, str], present: Sequence[str]) -> str:
    """How columns are named on the command line, for a source none of whose columns is known to be the text."""
    rest = [one for one in candidates("answer", present) if one not in found.values()]
    pictures = [one for one in candidates("image", present) if one not in (*rest, *found.values())]
    example = []
    if "image" not in found and (pictures or len(rest) > 1):
        example = [f"data.train.columns.image={pictures[0] if pictures else rest.pop(0)}"]
    # Of several columns none is taken for the answer: a user who copies the line would train on the questions.
    return command_line([*example, f"data.train.columns.answer={rest[0] if len(rest) == 1 else 'NAME'}"])
