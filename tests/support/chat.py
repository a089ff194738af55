"""A speaker that needs no model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch

from basic_lite.errors import UserError
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner
from tests.support.data import tokenizer


class Parrot:
    """Says ``words``, and remembers what it was asked."""

    name, note = "parrot", ""

    def __init__(self, words: str = "a red circle", delay: float = 0.0, interrupted_at: int | None = None) -> None:
        """``interrupted_at``: the token of the first answer at which someone presses Ctrl-C."""
        self.ids = tokenizer("byte").encode(words, add_special_tokens=False)
        self.asked: list[list[Message]] = []
        self.delay, self.interrupted_at = delay, interrupted_at

    def reply(self, messages: Sequence[Message], manner: Manner) -> Reply:
        if "refuse" in messages[-1].text:
            raise UserError("the conversation is too long")
        self.asked.append(list(messages))
        return Reply(tokenizer("byte"), self._generate, max_new_tokens=manner.max_new_tokens, end_ids=[2])

    def _generate(self, options: dict[str, Any]) -> None:
        options["streamer"].put(torch.tensor([[5]]))
        for n, one in enumerate([*self.ids, 2][: options["max_new_tokens"]]):
            if n == self.interrupted_at:
                self.interrupted_at = None
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(self.delay)
            options["streamer"].put(torch.tensor([one]))
            if bool(options["stopping_criteria"](torch.tensor([[5]]), None).all()):
                return
