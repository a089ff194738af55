"""Answers on their way: the pieces are the whole, a stop stops, errors of the thread arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.errors import UserError
from basic_lite.tools.chat.reply import Reply
from tests.support.chat import replying_threads, wait_to_be_stopped
from tests.support.data import tokenizer

TEXTS = [
    "a red circle",
    " two\n\n    lines, the second one indented\n  and a third ",
    "图片里有一个红色的圆。",
    "mixed 图片 and ünïcode 🙂🙂 done",
    "",
    "   ",
]


def speak(ids: Sequence[int], kind: str = "byte", most: int = 10_000, waits_at: int | None = None) -> Reply:
    """A reply from a ``generate`` that writes ``ids``."""

    def generate(options: dict[str, Any]) -> None:
        options["streamer"].put(torch.tensor([[5, 6, 7]]))
        seen = torch.tensor([[5, 6, 7]])
        for n, one in enumerate(list(ids)[: options["max_new_tokens"]]):
            if n == waits_at:
                wait_to_be_stopped(options)
            options["streamer"].put(torch.tensor([one]))
            seen = torch.cat([seen, torch.tensor([[one]])], dim=1)
            if bool(options["stopping_criteria"](seen, None).all()):
                break
        options["streamer"].end()

    return Reply(tokenizer(kind), generate, max_new_tokens=most, end_ids=[2])


@pytest.mark.parametrize("kind", ["byte", "spm", "spm_first", "word"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_whole(kind: str, text: str) -> None:
    ids = [*tokenizer(kind).encode(text, add_special_tokens=False), 2]
    pieces = list(speak(ids, kind))
    assert "".join(pieces) == tokenizer(kind).decode(ids, skip_special_tokens=True).strip()
    assert all(pieces)


@pytest.mark.parametrize("kind", ["byte", "spm"])
@given(text=st.text(alphabet="ab \n图🙂é.'", max_size=30))
def test_pieces_join_whatever_the_text(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    assert "".join(speak(ids, kind)) == tokenizer(kind).decode(ids, skip_special_tokens=True).strip()


def test_words_come_as_they_are_made() -> None:
    reply = speak(tokenizer("byte").encode("one two three four", add_special_tokens=False))
    assert list(reply) == ["one", " two", " three", " four"] and not reply.cut and not reply.stopped


def test_characters_of_unspaced_scripts_come_at_once() -> None:
    assert len(list(speak(tokenizer("byte").encode("红色的圆", add_special_tokens=False)))) == 4


def test_a_stop_ends_the_answer_and_its_thread() -> None:
    reply = speak(tokenizer("byte").encode("word " * 500, add_special_tokens=False), waits_at=20)
    said = []
    for piece in reply:
        said.append(piece)
        if len(said) == 2:
            reply.stop()
    assert 2 <= len(said) <= 21 and reply.stopped and not reply.cut
    assert replying_threads() == []


def test_leaving_the_loop_ends_the_thread() -> None:
    pieces = iter(speak(tokenizer("byte").encode("word " * 500, add_special_tokens=False), waits_at=20))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert replying_threads() == []


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [(ZeroDivisionError("a bug"), ZeroDivisionError), (torch.cuda.OutOfMemoryError("no room"), UserError)],
)
def test_an_error_of_the_thread_arrives(raised: Exception, arrives: type[Exception]) -> None:
    def generate(options: dict[str, Any]) -> None:
        raise raised

    with pytest.raises(arrives, match=r"a bug|out of memory while answering"):
        list(Reply(tokenizer("byte"), generate, max_new_tokens=3, end_ids=[2]))


@pytest.mark.parametrize(("ids", "cut"), [([70, 71, 72], True), ([70, 71, 2], False), ([70, 2], False)])
def test_cut_is_an_answer_without_an_end(ids: list[int], cut: bool) -> None:
    reply = speak(ids, most=3)
    list(reply)
    assert reply.cut is cut
