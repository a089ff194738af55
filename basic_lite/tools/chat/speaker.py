"""What can be asked: the interface of the two kinds of models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from basic_lite.errors import UserError
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS, Message

if TYPE_CHECKING:
    from basic_lite.tools.chat.reply import Reply

# Below it, a logit divided by it may be no number any more.
_LEAST_TEMPERATURE = 0.001


@dataclass(frozen=True)
class Manner:
    """How answers are made. A temperature of 0 takes the likeliest token each time."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0

    def options(self) -> dict[str, Any]:
        """For ``model.generate``."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature}


def require_temperature(value: float, key: str) -> None:
    """Refuse a temperature that is above 0 and too low to draw with.

    Args:
        key: what it was given as.

    Raises:
        UserError: it is.
    """
    if 0 < value < _LEAST_TEMPERATURE:
        raise UserError(f"{key} {value:g} is too low to draw with; give 0, or {_LEAST_TEMPERATURE} or more")


class Speaker(Protocol):
    """A model that answers."""

    name: str
    note: str  # what the user should know before the first question; may be empty

    def reply(self, messages: Sequence[Message], manner: Manner) -> "Reply":
        """The answer to the last message.

        Raises:
            UserError: the conversation is too long, or the model's chat template refuses it.
        """
        ...


def room_for_answer(manner: Manner, used: int, limit: int | None) -> int:
    """The most tokens that the answer may have.

    Args:
        used: tokens of the prompt, those of pictures included.
        limit: tokens that the model can have in all; None: it doesn't say.

    Raises:
        UserError: the prompt leaves no token for an answer.
    """
    if limit is None:
        return manner.max_new_tokens
    if used >= limit:
        raise UserError(
            f"the conversation has {used} tokens, pictures included, and this model reads {limit} at most; "
            "start a new conversation with fewer pictures or shorter questions"
        )
    return min(manner.max_new_tokens, limit - used)
