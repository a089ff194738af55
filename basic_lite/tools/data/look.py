"""What a data source holds: its format in plain words, and what its columns mean."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from basic_lite.data.columns import find_columns, picture_columns
from basic_lite.data.folder_source import FolderSource
from basic_lite.data.pictures import columns_of, looked_at_in
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.data.turns import is_turns
from basic_lite.endings import TABLE_ENDINGS
from basic_lite.recipe.schema import SourceSection
from basic_lite.unspaced import word_count

# Records that are looked at to tell the format.
_LOOKED_AT = 200

CAPTION_PROMPTS = (
    "Describe this picture.",
    "What does this picture show?",
    "What can be seen in this picture?",
    "Write a caption for this picture.",
)
# For answers of a word or three.
LABEL_PROMPTS = ("What is this?", "What does this picture show?", "What is in this picture?")
_SHORT = 3


@dataclass(frozen=True)
class Found:
    """What is in a data source.

    Attributes:
        form: The format in plain words.
        columns: Our names to theirs, as far as the first records show them.
        unused: Columns that are not read.
        captions: Whether pictures have texts but no questions.
        prompts: What could be asked about them.
    """

    records: Records
    form: str
    columns: Mapping[str, str]
    unused: tuple[str, ...]
    captions: bool
    prompts: tuple[str, ...]


def look(section: SourceSection) -> Found:
    """Open a source and read its first records.

    Raises:
        UserError: it can't be read.
    """
    # A prompt has no place beside questions; whether there are some is what is looked for.
    records = load_records(section, root=Path.cwd())
    [source] = records.sources
    rows = list(_rows(records))
    columns: dict[str, str] = dict(find_columns(source.columns, source.present))
    present = dict.fromkeys(source.present)
    used = set(columns.values())
    for row in rows:
        found = columns_of(row, source.columns)
        columns |= found
        used.update(found.values(), looked_at_in(row, picture_columns(found, row)))
        present |= dict.fromkeys(row)
    captions = "answer" in columns and not columns.keys() & {"question", "conversations"}
    answers = [text for row in rows if captions and isinstance(text := row.get(columns["answer"]), str)]
    words = median(map(word_count, answers)) if answers else 0
    place = section.path or section.folder or section.parquet or section.saved or section.hub
    form = f"{_contents(columns, rows)}, {_container(section, source)} {place}"
    unused = tuple(name for name in present if name not in used)
    prompts = LABEL_PROMPTS if words <= _SHORT else CAPTION_PROMPTS
    return Found(records, form, columns, unused, captions, prompts)


def short_answers(records: Records, indices: Iterable[int]) -> bool:
    """Whether half of these records' last answers have a word or three."""
    said = (
        next((turn.text for turn in records[int(index)].turns[::-1] if turn.role == "gpt"), "") for index in indices
    )
    words = [word_count(text) for text in said]
    return bool(words) and median(words) <= _SHORT


def _rows(records: Records) -> Iterator[Mapping[str, Any]]:
    [source] = records.sources
    for index in range(min(len(source), _LOOKED_AT)):
        try:
            row = source.row(index)
        except RecordProblem:
            continue
        if isinstance(row, Mapping):
            yield row


def _contents(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """What the records are, in plain words."""
    if "conversations" in columns:
        turns: Any = next((row[columns["conversations"]] for row in rows if row.get(columns["conversations"])), [])
        first = turns[0] if isinstance(turns, (list, tuple)) and turns else {}
        if isinstance(first, Mapping) and first.get("role") is not None:
            return "messages with role and content (as OpenAI and TRL have them)"
        if isinstance(first, Mapping) and "assistant" in first:
            return "turns with user and assistant (as The Cauldron has them)"
        return "conversations with from and value (as LLaVA and ShareGPT have them)"
    asked = columns.get("question")
    if asked is None:
        return "pictures with a text each"
    if any(is_turns(row.get(asked)) for row in rows):
        return "prompts and completions (as TRL has them)"
    return "instructions and outputs (as alpaca has them)" if asked == "instruction" else "questions and answers"


def _container(section: SourceSection, source: Any) -> str:
    if section.folder:
        beside = isinstance(source, FolderSource)
        return "in .txt files of the same name, in the folder" if beside else "in the metadata file of the folder"
    if section.path:
        return "in the table" if section.path.lower().endswith(TABLE_ENDINGS) else "in"
    return "in the data set"
