"""Questions that are asked in an evaluation, and what their answers are compared with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import listing
from basic_lite.data.images import check_image
from basic_lite.data.problems import BadRecord, RecordProblem, shorten
from basic_lite.data.prompts import asked_as_trained
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record, Turn
from basic_lite.errors import UserError
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.schema import DataSection
from basic_lite.scoring.metrics.named import Metric
from basic_lite.sizes import number_of

# Longer than any published scaling of rotary positions.
_MOST_SCALED = 10_000


@dataclass(frozen=True)
class Question:
    """A record whose last question is asked.

    Attributes:
        answers: what counts as right; empty: the record's own answer, if it has one.
        groups: rows of the table that it counts in, besides that of its type.
        circle: names the question whose rotations belong together: they are right only if all are. Empty: it is alone.
    """

    record: Record
    answers: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    circle: str = ""

    def right_answers(self, chat: ChatFormat) -> tuple[str, ...]:
        """What counts as right; nothing where that isn't known."""
        if self.answers:
            return self.answers
        own = chat.reference(self.record)
        return (own,) if own else ()

    @property
    def is_scored(self) -> bool:
        """Whether anything counts as right."""
        last = next((turn for turn in reversed(self.record.turns) if turn.role != "system"), None)
        return bool(self.answers or self.record.answer or (last and last.role == "gpt" and last.text.strip()))


def as_questions(records: Iterable[Record | Question]) -> list[Question]:
    """Records as questions; what is one already stays."""
    return [one if isinstance(one, Question) else Question(one) for one in records]


def question_of(record: Record) -> str:
    """The question that is asked: the last human turn as the record has it, or nothing."""
    return next((turn.text for turn in reversed(record.turns) if turn.role == "human"), "")


def without_picture(record: Record) -> Record:
    """The same record as the template would put it if it had never had a picture."""
    turns = tuple(
        Turn(turn.role, turn.text.replace(IMAGE_PLACEHOLDER, "").strip()) if turn.role == "human" else turn
        for turn in record.turns
    )
    return replace(record, images=(), turns=turns)


def check_pictures(records: Iterable[Record]) -> None:
    """Open all pictures before the first answer, and not in the middle.

    Raises:
        UserError: some are missing, or can't be decoded; they are told as ``listing`` does.
    """
    looked_at: set[tuple[str, str]] = set()  # several questions may be about one file
    problems: list[RecordProblem] = []
    for record in records:
        for image in record.images:
            if image.blob is None and (image.folder, image.name) in looked_at:
                continue
            looked_at.add((image.folder, image.name))
            try:
                check_image(image, "open")
            except RecordProblem as problem:
                problems.append(problem.at(record.place))
    if problems:
        lines = [f"{number_of(len(problems), 'picture')} can't be shown:", *listing(problems)]
        raise UserError(
            "\n".join([*lines, "Every question is asked, so mend what is named, or take it out of the file"])
        )


def ready_to_ask(
    questions: Sequence[Question],
    section: DataSection,
    frontend: Frontend,
    chat: ChatFormat,
    metric: Metric,
    *,
    no_question: str = "write one; captions are asked for without, in the plain template (--template plain)",
    key: str = "--metric",
) -> Sequence[Record]:
    """The questions' records as the model is asked them, each one looked at.

    Args:
        section: the training's data, whose prompts a picture without a question has.
        no_question: what to do about a record that asks nothing.
        key: what the metric is chosen with.

    Raises:
        BadRecord: one has no question, is longer than the model reads, or has an answer that the metric can't read.
    """
    asked = asked_as_trained([one.record for one in questions], section)
    if chat.template != "plain":
        _require_questions(asked, no_question)
    require_room(frontend, asked, lambda record: len(chat.prompt(record)))
    _require_answers(questions, chat, metric, key)
    return asked


def _require_questions(records: Iterable[Record], mend: str) -> None:
    """Refuse a record that asks nothing; ``mend``: what to do about it.

    Raises:
        BadRecord: no human turn has text.
    """
    for record in records:
        if not question_of(record).replace(IMAGE_PLACEHOLDER, "").strip():
            raise BadRecord("it has no question: no human turn with text", mend, record.place)


def most_tokens(text: Any) -> int | None:
    """The most tokens that an LLM of configuration ``text`` reads, scaled positions included; None: it doesn't say."""
    limit: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None)
    if limit is None or not isinstance(rope, dict):
        return limit
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor <= _MOST_SCALED:
        return limit
    # Some configurations count the positions after scaling, and name those before.
    first = rope.get("original_max_position_embeddings")
    return max(limit, int((first if isinstance(first, int) else limit) * factor))


def require_room(
    frontend: Frontend, records: Iterable[Record], length_of: Callable[[Record], int], what: str = "question"
) -> None:
    """Refuse what is as long as all that the model reads: the answer would be noise.

    Args:
        length_of: a record's tokens.
        what: they are of.

    Raises:
        BadRecord: it is.
    """
    limit = most_tokens(frontend.config.text_config)
    if limit is None:
        return
    for record in records:
        if (length := length_of(record)) >= limit:
            raise BadRecord(
                f"its {what} has {length:,} tokens, pictures included, and this model reads {limit:,} at most",
                "shorten it, or take the record out",
                record.place,
            )


def _require_answers(questions: Sequence[Question], chat: ChatFormat, metric: Metric, key: str) -> None:
    """Refuse questions with too few right answers for a metric, or one that it can't read; those without any pass.

    Raises:
        BadRecord: the first such question.
    """
    for one in questions:
        answers = one.right_answers(chat)
        if 0 < (count := len(answers)) < metric.least_answers:
            raise BadRecord(
                f"it has {number_of(count, 'right answer')}, and the metric {metric.name} needs "
                f"{metric.least_answers}: it counts how many people agree",
                f"choose another with {key}, or name the benchmark's own file",
                one.record.place,
            )
        for answer in answers:
            if why := metric.unread(answer, question_of(one.record)):
                raise BadRecord(
                    f"the metric {metric.name} can't read its right answer {shorten(answer)}: it {why}",
                    f"choose another with {key}, or correct the answer",
                    one.record.place,
                )


def several_questions(records: Iterable[Record]) -> str | None:
    """The note on records with several questions; None where there are none."""
    count = sum(1 for record in records if sum(turn.role == "human" for turn in record.turns) > 1)
    several = f"{number_of(count, 'record')} with several questions"
    return f"note: {several}: only the last one is asked, the others are its context" if count else None
