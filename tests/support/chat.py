"""A speaker that needs no model."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from basic_lite.errors import UserError
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.reply import THREAD, Reply
from basic_lite.tools.chat.speaker import Manner
from tests.support.data import tokenizer


def wait_to_be_stopped(options: dict[str, Any]) -> None:
    """Until the answer is stopped, 20 seconds at most: a busy machine may take its time."""
    end = time.monotonic() + 20
    while not bool(options["stopping_criteria"](torch.tensor([[5]]), None).all()) and time.monotonic() < end:
        time.sleep(0.001)


def replying_threads() -> list[threading.Thread]:
    """The threads that make an answer now."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


class Parrot:
    """Says ``words``, and remembers what it was asked."""

    name, note = "parrot", ""

    def __init__(
        self,
        words: str = "a red circle",
        delay: float = 0.0,
        interrupted_at: int | None = None,
        waits_at: int | None = None,
    ) -> None:
        """
        Args:
            interrupted_at: the token of the first answer at which someone presses Ctrl-C, which is waited for.
            waits_at: the token at which it waits to be stopped.
        """
        self.ids = tokenizer("byte").encode(words, add_special_tokens=False)
        self.asked: list[list[Message]] = []
        self.delay, self.interrupted_at, self.waits_at = delay, interrupted_at, waits_at

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
                wait_to_be_stopped(options)
            if n == self.waits_at:
                wait_to_be_stopped(options)
            time.sleep(self.delay)
            options["streamer"].put(torch.tensor([one]))
            if bool(options["stopping_criteria"](torch.tensor([[5]]), None).all()):
                return
