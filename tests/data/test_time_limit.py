"""Programs that others wrote come to an end: chat templates that loop, or write without measure."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from basic_lite.data.chat import ChatFormat
from basic_lite.data.problems import RecordProblem, TemplateRefused
from basic_lite.data.time_limit import TookTooLong, at_most, at_most_bytes
from basic_lite.errors import NoMemory, UserError
from basic_lite.sizes import MIB
from tests.support.data import CHATML, N, image_id, record, tokenizer

if sys.platform == "linux":
    import resource

# Seconds: a test whose limit is gone must fail, and not hang.
LOOP = "{% for a in range(300) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def count(end: float) -> int:
    number = 0
    while time.monotonic() < end:
        number += 1
    return number


def test_what_takes_too_long_is_broken_off_in_any_thread() -> None:
    found: list[object] = []

    def work() -> None:
        try:
            with at_most(0.1):
                count(time.monotonic() + 20)
        except TookTooLong as error:
            found.append(error)

    started = time.monotonic()
    thread = threading.Thread(target=work)
    thread.start()
    work()
    thread.join()
    assert len(found) == 2 and time.monotonic() - started < 10


def test_what_is_done_in_time_is_let_be() -> None:
    for _ in range(20):
        with at_most(0.5):
            count(time.monotonic() + 0.01)
    count(time.monotonic() + 0.8)  # nothing comes after its end
    with pytest.raises(ZeroDivisionError), at_most(5):
        _ = 1 / 0


@pytest.mark.parametrize("template", [LOOP + CHATML, CHATML.replace("m['content']", "m['content'] * 9999 * 99")])
def test_a_template_without_end_is_refused_at_the_start(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basic_lite.data.templates._LIMIT_S", 0.5)
    made = tokenizer("byte", "chatml")
    before, made.chat_template = made.chat_template, template
    started = time.process_time()
    try:
        with pytest.raises(UserError, match=r"the tokenizer's chat template can't be used: .*set data\.template to v1"):
            ChatFormat("tokenizer", made, image_id(made), N)
    finally:
        made.chat_template = before
    assert time.process_time() - started < 8


@pytest.mark.parametrize("sum_", ["'a' * 10000000000", "'a' * 10**10", "999999999 * 'a'"])
def test_a_template_that_fills_the_memory(sum_: str) -> None:
    made = tokenizer("byte", "chatml")
    before, made.chat_template = made.chat_template, CHATML + "{{ " + sum_ + " }}"
    try:
        with pytest.raises(UserError, match="multiplies by huge numbers"):
            ChatFormat("tokenizer", made, image_id(made), N)
    finally:
        made.chat_template = before


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory is held to an amount")
@pytest.mark.parametrize(
    "filling",
    [
        "{{ 'a' * 9999 * 9999 * 30 }}",
        "{% set n = 9999 %}{{ ('a' * n * n * 30) | length }}",
        "{{ '%2999999999s' | format('a') }}",
        "{% set t = namespace(x='0123456789') %}{% for i in range(29) %}{% set t.x = t.x ~ t.x %}{% endfor %}",
    ],
)
def test_a_template_that_fills_the_memory_unseen(filling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basic_lite.data.templates._LIMIT_S", 600.0)  # a busy machine needs more than 10 s for 2 GiB
    made = tokenizer("byte", "chatml")
    before, made.chat_template = made.chat_template, CHATML + filling
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with pytest.raises(UserError, match=r"fills the memory; set data\.template to v1"):
            ChatFormat("tokenizer", made, image_id(made), N)
    finally:
        made.chat_template = before
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory is held to an amount")
def test_a_limit_of_the_process_is_no_fault_of_the_template() -> None:
    """Under `ulimit -v` a template that needed a tenth of what each may take was said to fill the memory."""
    made = tokenizer("byte", "chatml")
    ChatFormat("tokenizer", made, image_id(made), N)  # what it loads and starts once is there
    before, limits = made.chat_template, resource.getrlimit(resource.RLIMIT_AS)
    made.chat_template = CHATML + "{{ ('a' * 9999 * 9999 * 2) | length }}"
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (taken + 100 * MIB, limits[1]))
        with pytest.raises(
            NoMemory, match=r"a limit on this process leaves it \d+ MiB .* \(`ulimit -v unlimited`\); if that"
        ):
            ChatFormat("tokenizer", made, image_id(made), N)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        made.chat_template = before


def test_a_thread_that_cant_start_is_no_fault_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = tokenizer("byte", "chatml")
    monkeypatch.setattr("basic_lite.data.time_limit._watch", None)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(NoMemory, match="a limit on it is too low; raise that"):
        ChatFormat("tokenizer", made, image_id(made), N)


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory is held to an amount")
def test_ctrl_c_leaves_no_limit_of_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came between the limit and what takes it back."""
    limits, limit = resource.getrlimit(resource.RLIMIT_AS), resource.setrlimit

    def pressed(what: int, limits: tuple[int, int]) -> None:
        limit(what, limits)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(resource, "setrlimit", pressed)
    with pytest.raises(KeyboardInterrupt), at_most_bytes(2**30):
        pass
    found = resource.getrlimit(resource.RLIMIT_AS)
    limit(resource.RLIMIT_AS, limits)
    assert found == limits


def test_a_template_that_one_record_sends_round(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer("byte", "chatml")
    before = made.chat_template
    made.chat_template = "{% if messages[0].content == 'round' %}" + LOOP + "{% endif %}" + CHATML
    monkeypatch.setattr("basic_lite.data.templates._LIMIT_S", 0.3)
    try:
        chat = ChatFormat("tokenizer", made, image_id(made), N)
        with pytest.raises(TemplateRefused, match="hasn't written this conversation"):
            chat.encode(record("round", "a"), 100)
        assert chat.encode(record("straight", "a"), 100).input_ids
        with pytest.raises(TemplateRefused, match="hasn't written this conversation"):
            chat.encode(record("round", "a"), 100)
        # Of each of 150,000 records 10 s are 17 days.
        with pytest.raises(
            UserError,
            match=r"^data\.json, record 7 \(id x7\): the .*0 s, and 2 times before it wasn't done either; set data\.",
        ) as told:
            chat.encode(record("round", "a"), 100)
        assert not isinstance(told.value, RecordProblem)
    finally:
        made.chat_template = before
