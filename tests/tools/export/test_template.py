"""The exported chat template writes for messages what training wrote for records, token for token."""

from __future__ import annotations

from typing import Any

import pytest

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import conversation
from basic_lite.data.records import Record
from basic_lite.tools.export.template import as_strings, bos_text, chat_template, messages_of
from tests.support.data import KINDS, TEMPLATES, N, image_id, record, tokenizer

FORMATS = ["v1", *TEMPLATES]
RECORDS = {
    "one image": record("<image>\nwhat is it ?", images=1),
    "image at the end": record("what is in <image>", images=1),
    "image alone": record("<image>", images=1),
    "no image": record("How many things are there?"),
    "image without its place": record("what is it?", images=1),
    "two images without their places": record("what are they?", images=2),
    "two images in the text": record("<image>\nand <image>\nare the same?", images=2),
    "a second question": record("<image>\nwhat is it ?", " a red circle ", "How many?", images=1),
    "a second image": record("<image>\nwhat is it ?", "a ring", "<image>\nand this?", images=2),
}


def form_of(kind: str, template: str) -> ChatFormat:
    own = template not in ("v1", "plain")
    tok = tokenizer(kind, template if own else None)
    return ChatFormat("tokenizer" if own else template, tok, image_id(tok), N)  # type: ignore[arg-type]


def ids_of(form: ChatFormat, messages: list[dict[str, Any]], *, generation: bool = True) -> list[int]:
    """What a llava-hf processor makes of messages."""
    text = form.tokenizer.apply_chat_template(
        messages, chat_template=chat_template(form), tokenize=False, add_generation_prompt=generation
    )
    bos = form.tokenizer.bos_token
    text_with_places = text.replace("<image>", "<image>" * N)
    return form.tokenizer(text_with_places, add_special_tokens=not text.startswith(bos))["input_ids"]  # type: ignore[no-any-return]


def question(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("template", FORMATS)
def test_prompts_are_those_of_training(template: str, name: str) -> None:
    for kind in KINDS:
        form = form_of(kind, template)
        one = RECORDS[name]
        messages = question(messages_of(conversation(one, answered=False)))
        assert ids_of(form, messages) == form.prompt(one), kind
        assert ids_of(form, as_strings(messages, "<image>")) == form.prompt(one), kind


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_the_images_alone(kind: str) -> None:
    form = form_of(kind, "plain")
    for images in (1, 2):
        one = record("describe it", images=images)
        messages = messages_of(conversation(one, answered=False))
        assert ids_of(form, messages) == form.prompt(one) == [*form.tokens.bos, *[form.image_token_id] * N * images]
    captioned = record("<image>\nname it", "a ring", images=1)
    ids = ids_of(form, messages_of(conversation(captioned)), generation=False)
    assert ids == form.encode(captioned, 500).input_ids


@pytest.mark.parametrize("template", ["v1", "chatml", "llama3"])
def test_a_system_turn_takes_the_place_of_the_usual_one(template: str) -> None:
    form = form_of("byte", template)
    one: Record = record("Be brief.", "<image>\nwhat?", images=1, roles="sh")
    assert ids_of(form, messages_of(conversation(one, answered=False))) == form.prompt(one)


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        ("hh", ("<image>", "what is it ?")),
        ("hh", ("How many?", "<image>\nand this?")),
        ("ghgh", ("Hello!", "<image>\nwhat?", "a ring", "How many?")),
        ("hgsh", ("<image>\nwhat?", "a ring", "Be brief.", "How many?")),
        ("hgssh", ("what?", "a ring", "Be brief.", "Be kind.", "<image>\nand this?")),
        ("hggh", ("<image>\nwhat?", "a ring", "of red", "How many?")),
        ("hsh", ("<image>\nwhat?", "Be brief.", "How many?")),
    ],
)
@pytest.mark.parametrize("template", FORMATS)
def test_messages_that_do_not_alternate_are_put_in_order(template: str, roles: str, turns: tuple[str, ...]) -> None:
    """As records' turns are: some programs send a picture and its question as two messages."""
    one = record(*turns, roles=roles, images=sum(turn.count("<image>") for turn in turns))
    names = {"h": "user", "g": "assistant", "s": "system"}
    strings = [{"role": names[role], "content": turn} for role, turn in zip(roles, turns, strict=True)]
    for kind in KINDS:
        form = form_of(kind, template)
        assert ids_of(form, strings) == form.prompt(one), kind


@pytest.mark.parametrize("template", FORMATS)
def test_several_images_that_text_follows_at_once(template: str) -> None:
    """People who give two pictures and a text get a line break; strings stay as they are, as in training."""
    for kind in KINDS:
        form, one = form_of(kind, template), record("<image><image>what are they?", images=2)
        messages = messages_of(conversation(one, answered=False))
        assert ids_of(form, as_strings(messages, "<image>")) == form.prompt(one), kind


def test_people_give_the_image_first_or_last_and_no_line_break() -> None:
    form = form_of("byte", "chatml")
    image, text = {"type": "image"}, {"type": "text", "text": "what is it ?"}
    expected = form.prompt(RECORDS["one image"])
    for content in (
        [image, text],
        [text, image],
        "<image>what is it ?",
        "<image>\nwhat is it ?",
        "what is it ?<image>",
    ):
        assert ids_of(form, [{"role": "user", "content": content}]) == expected, content
    two = form.prompt(RECORDS["two images without their places"])
    content = [image, image, {"type": "text", "text": "what are they?"}]
    assert ids_of(form, [{"role": "user", "content": content}]) == two


def test_a_template_that_wants_parts_gets_them() -> None:
    tok = tokenizer("byte", "chatml")
    before = tok.chat_template
    try:
        tok.chat_template = (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
            "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
            "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        form = ChatFormat("tokenizer", tok, image_id(tok), N)
        for one in RECORDS.values():
            messages = question(messages_of(conversation(one, answered=False)))
            assert ids_of(form, messages) == form.prompt(one)
    finally:
        tok.chat_template = before


def test_the_start_token_is_written_once_if_training_had_one() -> None:
    assert bos_text(form_of("byte", "chatml")) == ""
    for template in ("v1", "chatml", "llama3"):
        form = form_of("byte_bos", template)
        assert ids_of(form, [{"role": "user", "content": "a"}]).count(form.tokenizer.bos_token_id) == 1


def test_the_template_has_no_tag_that_other_programs_lack() -> None:
    assert "generation" not in chat_template(form_of("byte", "generation")).replace("add_generation_prompt", "")
