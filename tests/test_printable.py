"""What is printed of data, models and command lines: nothing that a terminal obeys, nothing without end."""

from __future__ import annotations

import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from basic_lite.console import Sheet, show, speaker
from basic_lite.data.problems import BadRecord, shorten
from basic_lite.data.record import named
from basic_lite.errors import UserError
from basic_lite.printable import MOST, message, one_line, printable

# A terminal's commands, the other line breaks, marks that turn the writing round, half a surrogate pair.
UNFIT = "\x1b[31m\r\x07\x08\x9b\u2028\u202e\u2066\ud800\x00"
TEXTS = st.text(st.characters() | st.sampled_from(UNFIT + "\n\t[/]"), max_size=200)


def is_fit(text: str) -> bool:
    text.encode("utf-8")
    return not any(one in text for one in UNFIT if one not in "[31m")


@given(TEXTS, st.integers(1, 300))
def test_a_message_is_fit_to_print_and_ends(text: str, times: int) -> None:
    error = str(UserError(f"photos.json, record 3: {text * times}\nCorrect it."))
    assert is_fit(error) and len(error) <= MOST
    assert error.startswith("photos.json, record 3: ") and error.endswith("\nCorrect it.")
    assert message(error) == error
    assert is_fit(one_line(text * times)) and "\n" not in one_line(text) and len(one_line(text * times)) <= 300


def test_an_ordinary_message_stays_as_it_is() -> None:
    text = "a.json: there is no such file;\n\tcorrect `path` – naïve, 日本語, v̂ → λ"
    assert str(UserError(text)) == printable(text) == text


def test_the_end_of_a_long_message_says_what_to_do() -> None:
    text = "\n".join(["60 records can't be used:", *(f"  record {n}: no answer" * 4 for n in range(60)), "Fix them."])
    shown = str(UserError(text)).split("\n")
    assert shown[0] == "60 records can't be used:" and shown[-1] == "Fix them."
    assert "lines left out" in shown[-2] and len(shown) > 15
    told = message("\n".join(["x" * 10**6, "y" * 10**6]))
    assert len(told) < 700 and told.startswith("xxx") and told.endswith("yyy")


def test_a_problem_goes_through_a_data_loader() -> None:
    problem = BadRecord("it has \x1b", "mend it", "a.json, record 1")
    assert str(problem) == "a.json, record 1: it has \\x1b; mend it"
    again = pickle.loads(pickle.dumps(UserError("a\x1bb")))
    assert str(again) == "a\\x1bb"


def test_an_id_is_short_and_in_one_line() -> None:
    assert named("a.json, record 1", "cat\n7") == "a.json, record 1 (id cat\\n7)"
    assert len(named("a.json, record 1", "x y" * 100_000)) < 120
    assert len(named("é" * 10_000, "")) <= 300


@pytest.mark.parametrize("value", [10**5000, float("nan"), {"a": "\ud800" * 1000}], ids=["huge", "nan", "surrogates"])
def test_any_value_is_shown(value: object) -> None:
    nested: list[object] = [value]
    for _ in range(100_000):
        nested = [nested]
    for one in (value, nested):
        assert is_fit(shorten(one)) and len(shorten(one)) <= 80
    while nested:  # freed one by one: at once would go as deep
        nested = nested.pop() if isinstance(nested[0], list) else []  # type: ignore[assignment]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_gets_no_commands(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, color_system=None, width=200)
    speaker(console)(f"note: {UNFIT} [/b]")
    table = Sheet(("question type", "n"))
    table.add(f"[bold]{UNFIT}\n[/b]", "1")
    show(console, table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert is_fit(said) and "[/b]" in said and "\\x1b[31m" in said and "[bold]" in said
