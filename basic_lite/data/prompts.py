"""What is asked about a picture that comes with a text but no question."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

from basic_lite.data.record import Record, Turn
from basic_lite.recipe.rules import sources_in
from basic_lite.recipe.schema import DataSection, SourceSection


def prompts_of(section: SourceSection) -> tuple[str, ...]:
    """The prompts of a source: none, one or several."""
    return (section.prompt,) if isinstance(section.prompt, str) else tuple(section.prompt or ())


def drawn(prompts: Sequence[str], number: int) -> str:
    """The prompt of a record; empty where there is none.

    Drawn by the record's number alone: the same in each process, each epoch and after --resume.
    """
    return prompts[zlib.crc32(str(number).encode()) % len(prompts)] if prompts else ""


def asked_as_trained(records: Sequence[Record], section: DataSection) -> Sequence[Record]:
    """Records of a source without prompts, with those of the training where a picture comes without a question."""
    prompts = _prompts_of_training(section)
    return [_asked(record, prompts) for record in records] if prompts else records


def with_prompts_of_training(
    source: SourceSection | list[SourceSection], section: DataSection
) -> SourceSection | list[SourceSection]:
    """Evaluation data as the run reads it: sources without prompts have those of the training."""
    if isinstance(source, list):
        return [_with_prompts(one, section) for one in source]
    return _with_prompts(source, section)


def _with_prompts(source: SourceSection, section: DataSection) -> SourceSection:
    prompts = _prompts_of_training(section)
    return source.model_copy(update={"prompt": prompts}) if prompts and source.prompt is None else source


def _prompts_of_training(section: DataSection) -> list[str]:
    return [prompt for source in sources_in(section.train) for prompt in prompts_of(source)]


def _asked(record: Record, prompts: Sequence[str]) -> Record:
    first = record.turns[:1]
    if not record.images or first != (Turn("human", ""),):
        return record
    return replace(record, turns=(Turn("human", drawn(prompts, record.number)), *record.turns[1:]))
