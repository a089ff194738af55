"""What can be wrong with one record, as exceptions that name the record, the reason and the fix."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

from basic_lite.errors import UserError
from basic_lite.printable import quoted


class RecordProblem(UserError):
    """One record that can't be used.

    Raised without a place by the code that finds it; whoever knows the record adds it with ``at``.
    """

    kind = "bad record"

    def __init__(self, what: str, mend: str = "", place: str = "") -> None:
        # A data loader builds a worker's exception anew from one string that holds the whole traceback. Only the last
        # line of that is meant for the user.
        if what.startswith("Caught ") and "\nOriginal Traceback" in what:
            what = what.rsplit(f"{type(self).__name__}: ", 1)[-1].strip()
        self.what, self.mend, self.place = what, mend, place
        text = f"{place}: {what}" if place else what
        super().__init__(f"{text}; {mend}" if mend else text)

    def found_while_training(self, *, opened_before: bool) -> RecordProblem:
        """The same problem, with what to do about it in a run.

        Args:
            opened_before: all pictures were opened before the run, and this one was whole.
        """
        hint = "continue with --resume, which drops the record with data.bad_records=drop"
        if opened_before:
            hint = f"it was whole before the run; {hint}"
        else:
            hint += "; data.check_images=open finds all such images before a run"
        return type(self)(self.what, f"{self.mend}; {hint}" if self.mend else hint, self.place)

    def at(self, place: str) -> RecordProblem:
        """The same problem with the place it was found at (the first one given stays)."""
        return self if self.place else type(self)(self.what, self.mend, place)


class BadRecord(RecordProblem):
    """The record itself is not as LLaVA's or the messages format has it."""


class BadImage(RecordProblem):
    """An image that is missing, broken, or outside the image folder."""

    kind = "unreadable picture"


class BadPlaceholders(RecordProblem):
    """Images and `<image>` placeholders don't fit together."""

    kind = "images and placeholders differ"


class TemplateRefused(RecordProblem):
    """The tokenizer's own chat template raised, or its answers can't be found in what it wrote."""

    kind = "refused by the chat template"


class TemplateStopped(UserError):
    """The tokenizer's own chat template had to be stopped too often: no other record is tried."""


class NoSupervisedToken(RecordProblem):
    """Nothing in the record is an answer: training on it would teach nothing."""

    kind = "no supervised token"


class TooLong(RecordProblem):
    """The record doesn't fit into `data.max_length`, even with its text cut."""

    kind = "too long"


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (nearest: 'x')"`, or nothing when no known name is near."""
    found = difflib.get_close_matches(name[:100], itertools.islice(map(str, known), 1_000), n=1, cutoff=0.5)
    return f" (nearest: {found[0]!r})" if found else ""


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value, short enough for a message."""
    return quoted(value, limit)
