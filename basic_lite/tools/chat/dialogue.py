"""A conversation: what was said, and the pictures that go with the next question."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from basic_lite.data.images import ImageRef
from basic_lite.data.records import IMAGE_PLACEHOLDER
from basic_lite.errors import UserError

# The most tokens of an answer.
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Message:
    """One turn. A user's text may say where its pictures go, with ``<image>`` for each; else they stand before it."""

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[ImageRef, ...] = ()

    def __post_init__(self) -> None:
        places, count = self.text.count(IMAGE_PLACEHOLDER), len(self.pictures)
        if self.role == "user" and places not in (0, count):
            raise UserError(
                f"the question has {places} {IMAGE_PLACEHOLDER}, which stand for pictures, and {count or 'no'} new "
                f"picture{'s' * (count != 1)}; write {IMAGE_PLACEHOLDER} once for each, or leave it out"
            )


@dataclass
class Dialogue:
    """The messages so far, and the pictures for the next question."""

    messages: list[Message] = field(default_factory=list)
    pictures: list[ImageRef] = field(default_factory=list)

    def asked(self, text: str) -> list[Message]:
        """The conversation with a new question at its end; nothing is kept yet."""
        return [*self.messages, Message("user", text, tuple(self.pictures))]

    def keep(self, asked: list[Message], answer: str) -> None:
        """Keep a question of ``asked`` with its answer. The next question starts without new pictures."""
        self.messages = [*asked, Message("assistant", answer)]
        self.pictures = []

    def clear(self) -> None:
        """Start again, without pictures."""
        self.messages, self.pictures = [], []


def pictures_of(messages: Iterable[Message]) -> tuple[ImageRef, ...]:
    """All pictures of a conversation, in order."""
    return tuple(image for message in messages for image in message.pictures)
