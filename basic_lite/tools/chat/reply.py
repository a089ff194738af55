"""An answer on its way: transformers generates in a thread, the pieces come out as they are sure."""

import queue
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from basic_lite.errors import enough_memory
from basic_lite.unspaced import UNSPACED

THREAD = "reply"
"""Name of the thread that generates."""

_MEND = "start a new conversation with fewer pictures, lower --max-new-tokens, or give --device cpu"


class Reply:
    """Iterate over it for the pieces of the answer; joined they are what ``answer`` would have returned.

    The end of the iteration ends the thread, whether all was taken, ``stop`` was called, or the loop was left. An error
    of the thread is raised there; out of memory as a UserError.
    """

    def __init__(
        self,
        tokenizer: Any,
        generate: Callable[[dict[str, Any]], object],
        *,
        max_new_tokens: int,
        end_ids: Collection[int],
    ) -> None:
        """
        Args:
            generate: runs ``model.generate`` with the options it is given, besides its own.
            end_ids: tokens that end an answer.
        """
        self._generate = generate
        self._most, self._end_ids = max_new_tokens, end_ids
        self._streamer = _Streamer()
        self._seen: list[int] = []
        self._stopped = threading.Event()
        self._broken_off = False
        self._tokenizer = tokenizer

    def stop(self) -> None:
        """End the answer at its next token. May be called from any thread."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called before the last piece was taken."""
        return self._broken_off

    @property
    def cut(self) -> bool:
        """Whether the answer ended because it had ``max_new_tokens``."""
        return len(self._seen) >= self._most and self._seen[-1] not in self._end_ids

    def why_cut(self, asked: int, option: str) -> str:
        """What to say of an answer that was cut.

        Args:
            asked: the most tokens that were asked for; where the conversation leaves less, it says so.
            option: what allows more.
        """
        if self._most < asked:
            return f"after {self._most} tokens the conversation is as long as this model reads"
        return f"it has {self._most} tokens; {option} allows more"

    def __iter__(self) -> Iterator[str]:
        failures: list[BaseException] = []
        thread = threading.Thread(target=self._work, args=(failures,), name=THREAD, daemon=True)
        thread.start()
        said = 0
        try:
            for ids in iter(self._streamer.arrived.get, None):
                self._seen += ids
                sure = self._sure()
                if len(sure) > said:
                    yield sure[said:]
                    said = len(sure)
        finally:
            self._broken_off = self._stopped.is_set()
            self.stop()
            thread.join()
        for failure in failures:
            with enough_memory(_MEND, "while answering"):
                raise failure
        if rest := self._text().strip()[said:]:
            yield rest

    def _work(self, failures: list[BaseException]) -> None:
        stopping = StoppingCriteriaList([_Stopped(self._stopped)])
        try:
            self._generate({"streamer": self._streamer, "stopping_criteria": stopping, "max_new_tokens": self._most})
        except BaseException as error:  # the iteration raises it
            failures.append(error)
        finally:
            self._streamer.end()

    def _text(self) -> str:
        # The whole is decoded each time: pieces decoded alone lose spaces (SentencePiece) and halves of characters.
        return str(self._tokenizer.decode(self._seen, skip_special_tokens=True))

    def _sure(self) -> str:
        """The beginning that no further token changes: without its last word, and without space at either end.

        Scripts without spaces come character by character.
        """
        text = self._text().lstrip()
        if text and text[-1] >= UNSPACED and text[-1] != "\ufffd":
            return text
        return text[: -len(text.split()[-1])].rstrip() if text and not text[-1].isspace() else text.rstrip()


class _Streamer(BaseStreamer):
    """Carries the tokens from ``generate``'s thread to the one that reads the answer."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[list[int] | None] = queue.Queue()  # new ids; None at the end
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Called with the prompt's ids first, then with each new token."""
        if not self._prompt:
            self.arrived.put(value.flatten().tolist())
        self._prompt = False

    def end(self) -> None:
        self.arrived.put(None)


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full(input_ids.shape[:1], self._event.is_set(), dtype=torch.bool, device=input_ids.device)
