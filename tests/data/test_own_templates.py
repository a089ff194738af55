"""Chat templates in the spirit of published ones that answer, date and system turn get lost in."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils import chat_template_utils

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import conversation
from basic_lite.data.problems import TemplateRefused
from basic_lite.errors import UserError
from basic_lite.tools.export.template import chat_template, messages_of
from tests.support.data import CHATML, N, image_id, record, supervised, tokenizer

BIG = 100_000
ASKED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"


def generation(before: str, *marked: str) -> str:
    """A template that marks answers in a way of its own."""
    spans = "".join(f"{{% generation %}}{{{{ {one} }}}}{{% endgeneration %}}" for one in marked)
    answer = f"{{{{ {before} }}}}{spans}"
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        + answer
        + f"{{% else %}}{TURN}{{% endif %}}{{% endfor %}}"
        + ASKED
    )


# What some templates mark is no answer: SmolLM3's begins with the role, TRL's for Phi 3.5 are several to an answer.
MARKED = {
    "role": generation("''", r"'<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n'"),
    "several": generation(r"'<|im_start|>assistant\n'", "m['content']", r"'<|im_end|>'", r"'\n'"),
    "no end": generation(r"'<|im_start|>assistant\n'", "m['content']") .replace(
        "{% endgeneration %}{% else %}", "{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
    ),
}  # fmt: skip


def chat(template: str, kind: str = "byte") -> ChatFormat:
    tok = tokenizer.__wrapped__(kind)
    tok.chat_template = template
    return ChatFormat("tokenizer", tok, image_id(tok), N)


@pytest.mark.parametrize("name", MARKED)
def test_what_a_template_marks_itself_is_not_asked(name: str) -> None:
    form, plain = chat(MARKED[name]), chat(CHATML)
    for one in (record("<image>\nwhat?", "a ring", images=1), record("q", "a", "r", "two things")):
        assert form.encode(one, BIG) == plain.encode(one, BIG)
        assert form.tokenizer.decode(supervised(form.encode(one, BIG))).endswith(one.turns[-1].text + "<|im_end|>")
        assert form.prompt(one) == plain.prompt(one)
        assert exported(form, messages_of(conversation(one))[:-1]) == form.tokenizer.decode(form.prompt(one))


def exported(form: ChatFormat, messages: list[dict[str, Any]]) -> str:
    text: str = form.tokenizer.apply_chat_template(
        messages, chat_template=chat_template(form), tokenize=False, add_generation_prompt=True
    )
    return text.replace("<image>", "<image>" * N)


@pytest.mark.parametrize("call", ["strftime_now('%d %B %Y')", 'strftime_now( "%d %B %Y" )'])
def test_a_template_that_asks_for_the_date_gets_the_same_each_day(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral Small's and SmolLM3's take no `date_string`."""

    class Tomorrow(chat_template_utils.datetime):  # type: ignore[misc,name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    form = chat("{{ 'Today: ' + " + call + " + '\n' }}" + CHATML)
    text = form.tokenizer.decode(form.prompt(record("q")))
    assert text.startswith("Today: 26 July 2024\n")
    assert exported(form, [{"role": "user", "content": "q"}]) == text


def test_a_date_that_cannot_be_held_is_refused() -> None:
    with pytest.raises(UserError, match=r"writes today's date, so each day another text; set data\.template to v1"):
        chat("{% set form = '%d' %}{{ strftime_now(form) }}" + CHATML)


def test_a_date_in_a_form_that_the_system_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"a date in a form that isn't known here .*; set data\.template to v1"):
        chat("{{ strftime_now('\ud800') }}" + CHATML)


def test_an_end_that_is_no_token_would_never_stop() -> None:
    """ChatML over a tokenizer that has none of its tokens, as people put it over a base model."""
    with pytest.raises(UserError, match=r"ends an answer with '<\|im_END\|>', .* so no answer would stop; set data\.t"):
        chat(CHATML.replace("im_end", "im_END"))
    with pytest.raises(UserError, match="so no answer would stop"):
        chat(CHATML.replace("im_end", "im_END"), "word")  # its token for all unknown words
    assert chat(CHATML.replace("<|im_end|>", "")).stop_token_ids  # a line break
    assert chat(CHATML.replace("<|im_end|>", "<|im_END|></s>")).stop_token_ids == [2]


# Mistral's: the system turn is written where the last turn is a question, so never in training.
LAST = (
    "{% if messages[0]['role'] == 'system' %}{% set system, rest = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set system, rest = '', messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}"
    "{{ '[INST]' + (system + '\n\n' if loop.last and system else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def test_a_system_turn_is_not_lost_in_silence() -> None:
    form = chat(LAST)
    form.encode(record("q", "a"), BIG)
    for act in (lambda: form.encode(record("be kind", "q", "a", roles="shg"), BIG),
                lambda: form.prompt(record("be kind", "q", roles="sh"))):  # fmt: skip
        with pytest.raises(
            TemplateRefused, match=r"record 7 .*leaves the system turn out.*put its text into the first"
        ):
            act()
    assert chat(LAST).encode(record(" ", "q", "a", roles="shg"), BIG) == form.encode(record("q", "a"), BIG)


def test_a_system_turn_that_is_the_template_s_own_is_not_lost() -> None:
    """Qwen 2.5's writes one where a conversation has none; much data has the same one. Others want one."""
    own = "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    form = chat("{% if messages[0]['role'] != 'system' %}" + own + "{% endif %}" + CHATML)
    said = form.encode(record("You are a helpful assistant.", "q", "a", roles="shg"), BIG)
    assert said == form.encode(record("q", "a"), BIG)
    wanted = "{% if messages[0]['role'] != 'system' and messages | length > 2 %}{{ raise_exception('no') }}{% endif %}"
    assert chat(wanted + CHATML).encode(record("be kind", "q", "a", "r", "b", roles="shghg"), BIG)


@pytest.mark.parametrize("text", ["be kind", "You are a helpful assistant."])
def test_a_system_turn_that_becomes_the_template_s_own_is_lost(text: str) -> None:
    own = "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    form = chat(own + "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}" + CHATML)
    with pytest.raises(TemplateRefused, match="leaves the system turn out"):
        form.encode(record(text, "q", "a", roles="shg"), BIG)
