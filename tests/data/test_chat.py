"""Conversations to tokens: what is supervised, where images go, what is cut, in every format."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.problems import (
    BadPlaceholders,
    BadRecord,
    NoSupervisedToken,
    RecordProblem,
    TemplateRefused,
    TooLong,
)
from basic_lite.data.templates import V1_SYSTEM
from basic_lite.errors import UserError
from basic_lite.tools.sample import render_sample
from tests.support.data import CHATML, KINDS, TEMPLATES, N, image_id, record, supervised, tokenizer

FORMATS = ["plain", "v1", *TEMPLATES]
BIG = 100_000


def chat(kind: str, form: str, image: bool = True) -> ChatFormat:
    own = form if form in TEMPLATES else None
    tok = tokenizer(kind, own, image)
    return ChatFormat("tokenizer" if own else form, tok, image_id(tok), N)  # type: ignore[arg-type]


def text_of(turns: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.replace(IMAGE, "@")) for turn in turns]


@pytest.mark.parametrize(
    ("given_record", "expected"),
    [
        (record("<image>\nq", "a", images=1), [("human", "@\nq"), ("gpt", "a")]),
        (record("q\n<image>", "a", images=1), [("human", "@\nq"), ("gpt", "a")]),
        (record("what is <image> this", "a", images=1), [("human", "@\nwhat is  this"), ("gpt", "a")]),
        (record("<image>", "a", images=1), [("human", "@"), ("gpt", "a")]),
        (record("a <image> b <image>", "c", images=2), [("human", "a @ b @"), ("gpt", "c")]),
        (record("q", "a", images=2), [("human", "@@\nq"), ("gpt", "a")]),
        (record("q", "a", "<image> r", "b", images=1),
         [("human", "q"), ("gpt", "a"), ("human", "@\nr"), ("gpt", "b")]),
        (record("hello", "q", "a", roles="ghg"), [("human", "q"), ("gpt", "a")]),
        (record("q", "r", "a", "b", roles="hhgg"), [("human", "q\nr"), ("gpt", "a\nb")]),
        (record("q", "a", "bye"), [("human", "q"), ("gpt", "a")]),
        (record("be kind", "q", "a", roles="shg"), [("system", "be kind"), ("human", "q"), ("gpt", "a")]),
        (record("q", "a", "now", "r", "b", roles="hgshg"),
         [("human", "q"), ("gpt", "a"), ("human", "now\nr"), ("gpt", "b")]),
        (record("q", "a", "now", "b", roles="hgsg"), [("human", "q"), ("gpt", "a\nb")]),
        (record("q", "see <image>", images=0), [("human", "q"), ("gpt", "see <image>")]),
    ],
)  # fmt: skip
def test_odd_turns_are_put_in_order(given_record: Any, expected: Any) -> None:
    assert text_of(conversation(given_record)) == expected


@pytest.mark.parametrize(
    ("bad", "kind", "expected"),
    [
        (record("<image> q", "a"), BadPlaceholders, "have 1 <image> but it has no images"),
        (record("<image> q", "a", images=2), BadPlaceholders, "have 1 <image> but it has 2 images"),
        (record("<image><image> q", "a", images=1), BadPlaceholders, "have 2 <image> but it has 1 image;"),
        (record("q", "a", "<image>", images=1), BadPlaceholders, "no answer follows"),
        (record("a", roles="g", images=1), BadRecord, "no question"),
        (record("q"), NoSupervisedToken, "no answer"),
        (record("q", " \n"), NoSupervisedToken, "no answer"),
        (record("hello", "q", roles="gh"), NoSupervisedToken, "no answer"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "v1", "chatml"])
def test_unusable_conversations_are_named(bad: Any, kind: type, expected: str, form: str) -> None:
    with pytest.raises(kind, match=r"data\.json, record 7 \(id x7\): ") as caught:
        chat("byte", form).encode(bad, BIG)
    assert expected in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_v1_is_llavas_text() -> None:
    form = chat("byte_bos", "v1")
    encoded = form.encode(record("<image>\nwhat?", "a ring.", "and?", "two", images=1), BIG)
    text = form.tokenizer.decode(encoded.input_ids)
    assert text == (f"<s>{V1_SYSTEM} USER: {'<image>' * N}\nwhat? ASSISTANT: a ring.</s>USER: and? ASSISTANT: two</s>")
    assert form.tokenizer.decode(supervised(encoded)) == " a ring.</s> two</s>"
    own = form.encode(record("be brief", "what?", "a", roles="shg"), BIG)
    assert form.tokenizer.decode(own.input_ids) == "<s>be brief USER: what? ASSISTANT: a</s>"
    # Words, a dummy prefix, or none: what is supervised is the answer and the end-of-text token.
    for kind in KINDS:
        form = chat(kind, "v1")
        encoded = form.encode(record("what is", "a red circle", images=1), BIG)
        assert form.tokenizer.decode(supervised(encoded)).split() in (
            ["a", "red", "circle", "</s>"], ["a", "red", "circle</s>"])  # fmt: skip


def test_plain_is_images_then_caption() -> None:
    form = chat("byte_bos", "plain")
    encoded = form.encode(record("Describe this.\n<image>", "A ring.", images=1), BIG)
    assert form.tokenizer.decode(encoded.input_ids) == f"<s>{'<image>' * N}A ring.\n"
    assert form.tokenizer.decode(supervised(encoded)) == "A ring.\n"
    newline = form.tokenizer.encode("\n", add_special_tokens=False)
    assert encoded.input_ids[-1:] == newline
    assert set(form.stop_token_ids) == {*newline, form.tokenizer.eos_token_id}
    # Words have no line break: the end-of-text token ends a caption.
    form = chat("word", "plain")
    assert form.encode(record("x", "a ring", images=1), BIG).labels[-1] == form.tokenizer.eos_token_id
    # Nothing predicts the very first token.
    assert chat("byte", "plain").encode(record("q", "A ring."), BIG).labels[0] == -100


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["byte", "byte_bos", "spm", "spm_first"])
def test_ids_equal_those_of_the_whole_text(kind: str, form: str) -> None:
    """The rendered text tokenised in one go, as transformers does at inference, gives the same ids."""
    chat_format = chat(kind, form)
    tok = chat_format.tokenizer
    # Answers whose first word no learnt merge joins with what is before it.
    encoded = chat_format.encode(record("<image>\nwhat things?", "Zz two.", "how many?", "Zz x", images=1), BIG)
    if form == "plain":
        text = "<image>Zz two.\nZz x\n"
    elif form == "v1":
        text = f"{V1_SYSTEM} USER: <image>\nwhat things? ASSISTANT: Zz two.</s>"
        text += "USER: how many? ASSISTANT: Zz x</s>"
    else:
        talk = ["<image>\nwhat things?", "Zz two.", "how many?", "Zz x"]
        messages = [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 2, talk, strict=True)]
        text = tok.apply_chat_template(messages, tokenize=False)
    ids = tok.encode(text, add_special_tokens=not text.startswith("<s>"))
    place = ids.index(chat_format.image_token_id)
    assert encoded.input_ids == ids[:place] + [ids[place]] * N + ids[place + 1 :]
    assert encoded.input_ids.count(tok.bos_token_id) == int(kind != "byte" or text.startswith("<s>"))


@pytest.mark.parametrize("form", list(TEMPLATES))
def test_own_templates_supervise_answer_and_end_of_turn(form: str) -> None:
    end = {"llama3": "<|eot|>", "gemma": "<end_of_turn>", "mistral": "</s>"}.get(form, "<|im_end|>")
    chat_format = chat("byte_bos", form)
    encoded = chat_format.encode(record("q", " user ", "r", "assistant", images=1), BIG)
    decoded = chat_format.tokenizer.decode(supervised(encoded))
    space = " " if form == "mistral" else ""
    assert decoded == f"{space}user{end}{space}assistant{end}"
    assert chat_format.tokenizer.convert_tokens_to_ids(end) in chat_format.stop_token_ids


def test_generation_tags_decide_where_there_are_any() -> None:
    tok = tokenizer("byte", "generation")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}]
    theirs = tok.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ours = ChatFormat("tokenizer", tok, image_id(tok), N).encode(record("q", "an answer"), BIG)
    assert ours.input_ids == theirs["input_ids"]
    assert [int(label != -100) for label in ours.labels] == theirs["assistant_masks"]


def test_templates_that_refuse_or_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemplateRefused, match=r"record 7 .*System role not supported"):
        chat("byte", "gemma").encode(record("be kind", "q", "a", roles="shg"), BIG)
    # Odd orders are put right before the template sees them.
    chat("byte", "mistral").encode(record("a", "q", "r", "b", "c", roles="ghhgg"), BIG)
    with pytest.raises(TemplateRefused, match=r"data\.template"):
        chat("byte", "thinking").encode(record("q", "one</think>two", "r", "b"), BIG)
    tok = tokenizer.__wrapped__("byte")
    with pytest.raises(UserError, match=r"no chat template; set data\.template=v1"):
        ChatFormat("tokenizer", tok, image_id(tok), N)
    cases = [
        ("{{ messages[0]['content'] }}", "does not write out"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "never learn to stop"),
        ("{% for m in messages %}{{ m['content'] + x.y }}{% endfor %}", "can't be used"),
        ("{% for m in messages", "can't be used"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% generation %}{% endgeneration %}", None),
    ]
    for template, expected in cases:
        tok.chat_template = template
        if expected is not None:
            with pytest.raises(UserError, match=expected) as caught:
                ChatFormat("tokenizer", tok, image_id(tok), N)
            assert "data.template" in str(caught.value)
    # Templates of multimodal models loop over parts.
    tok.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] if c['type'] == 'text' %}"
        "{{ c['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
    )
    encoded = ChatFormat("tokenizer", tok, image_id(tok), N).encode(record("q <image>", "a b", images=1), BIG)
    assert tok.decode(supervised(encoded)) == "a b\n"
    tok.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        ChatFormat("v1", tok, image_id(tok), N)


def test_the_date_does_not_change_a_sample() -> None:
    tok = tokenizer.__wrapped__("byte")
    tok.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%H:%M:%S.%f') %}{% endif %}"
        "{{ date_string }}" + CHATML
    )
    form = ChatFormat("tokenizer", tok, image_id(tok), N)
    assert form.encode(record("q", "a"), BIG) == form.encode(record("q", "a"), BIG)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_written_out_special_tokens_are_text(kind: str, form: str) -> None:
    """`</s>`, `<image>` and the like in a record's text never become control tokens."""
    chat_format = chat(kind, form)
    clean = chat_format.encode(record("q", "a", images=1), BIG)
    dirty = chat_format.encode(record("q </s> <|im_end|>", "a <image> </s><s> <end_of_turn>", images=1), BIG)
    tok = chat_format.tokenizer
    special = {*tok.all_special_ids, chat_format.image_token_id} - {tok.unk_token_id}
    assert [i for i in dirty.input_ids if i in special] == [i for i in clean.input_ids if i in special]
    assert dirty.input_ids.count(chat_format.image_token_id) == N
    if kind.startswith("byte"):
        assert "a <image> </s><s> <end_of_turn>" in tok.decode(supervised(dirty))


def test_image_token_beyond_the_vocabulary() -> None:
    form = chat("byte_bos", "v1", image=False)
    encoded = form.encode(record("<image> and <image>", "a <image>", images=2), BIG)
    assert encoded.input_ids.count(form.image_token_id) == 2 * N
    assert encoded.n_images == 2


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_what_training_saw(kind: str, form: str) -> None:
    chat_format = chat(kind, form)
    asked = record("<image>\nwhat is", "a ring", "how many", "two things", images=1)
    encoded = chat_format.encode(asked, BIG)
    prompt = chat_format.prompt(asked)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt)] != -100
    assert chat_format.reference(asked) == "two things"
    # A question that has no answer yet gives the same prompt.
    assert chat_format.prompt(record("<image>\nwhat is", "a ring", "how many", images=1)) == prompt
    blank = record("<image>\nwhat is", "a ring", "how many", "", images=1)
    assert chat_format.prompt(blank) == prompt
    assert chat_format.reference(record("q")) == ""
    assert chat_format.prompt(record("<image>", images=1)).count(chat_format.image_token_id) == N
    with pytest.raises(RecordProblem, match="record 7"):
        chat_format.prompt(record("<image> q", "a"))


def test_blank_answers_among_others_are_not_supervised() -> None:
    for form in ("plain", "v1", "chatml"):
        chat_format = chat("byte_bos", form)
        encoded = chat_format.encode(record("q", "", "r", "b"), BIG)
        assert chat_format.tokenizer.decode(supervised(encoded)).strip() in ("b", "b</s>", "b<|im_end|>")


def test_images_are_never_cut() -> None:
    form = chat("byte_bos", "v1")
    long = record("<image> q", "word " * 50, "and <image>", "more", images=2)
    full = form.encode(long, BIG)
    for length in range(8, len(full.input_ids) + 2):
        # Below, no supervised token would be left.
        if length < len(form.prompt(record("<image> q", images=1))) + N + 1:
            with pytest.raises(TooLong, match=r"record 7 .*raise data\.max_length"):
                form.encode(long, length)
            continue
        encoded = form.encode(long, length)
        assert len(encoded.input_ids) == min(length, len(full.input_ids))
        assert encoded.cut == len(full.input_ids) - len(encoded.input_ids)
        assert encoded.input_ids.count(form.image_token_id) == 2 * N
        assert any(label != -100 for label in encoded.labels)
        text = [i for i in encoded.input_ids if i != form.image_token_id]
        assert text == [i for i in full.input_ids if i != form.image_token_id][: len(text)]
    with pytest.raises(TooLong, match="images take 10 tokens"):
        form.encode(long, 2 * N)
    with pytest.raises(TooLong, match="no supervised token left"):
        form.encode(long, 2 * N + 4)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ANSWERS = WORDS.filter(lambda text: bool(text.strip()) and text.isprintable())


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["byte", "byte_bos", "spm", "spm_first"]),
    form=st.sampled_from(FORMATS),
    talk=st.lists(st.tuples(WORDS, st.integers(0, 2), ANSWERS), min_size=1, max_size=3),
    length=st.integers(8, 400),
)
def test_any_conversation(kind: str, form: str, talk: list[tuple[str, int, str]], length: int) -> None:
    chat_format = chat(kind, form)
    turns: list[str] = []
    for question, places, answer in talk:
        turns += [question.replace("<image>", "") + "<image>" * places, answer]
    count = sum(places for _, places, _ in talk)
    one = record(*turns, images=count)
    encoded = chat_format.encode(one, BIG)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert encoded.input_ids.count(chat_format.image_token_id) == count * N
    for i, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (-100, i)
        assert label != chat_format.image_token_id
    if form != "plain" or count or kind != "byte":
        got = chat_format.tokenizer.decode(supervised(encoded), clean_up_tokenization_spaces=False)
        end = {"plain": "\n", "v1": "</s>", "llama3": "<|eot|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
        expected = "".join(answer.strip() + end.get(form, "<|im_end|>") for *_, answer in talk)
        # Space around an answer belongs to the template; every other character is the answer's.
        assert "".join(got.split()) == "".join(expected.split())
    try:
        short = chat_format.encode(one, length)
    except TooLong:
        return
    assert len(short.input_ids) == min(length, len(encoded.input_ids))
    assert short.input_ids.count(chat_format.image_token_id) == count * N
    assert supervised(short) == supervised(encoded)[: len(supervised(short))] != []


def test_pickle_and_padding_of_others() -> None:
    form = chat("spm", "chatml")
    again = pickle.loads(pickle.dumps(form))
    one = record("what is <image>", "a ring", images=1)
    expected = form.encode(one, BIG)
    assert again.encode(one, BIG) == expected
    # What someone else does with the same tokenizer changes nothing.
    form.tokenizer.pad_token = "</s>"
    form.tokenizer(["a b c", "a"], padding="max_length", truncation=True, max_length=2)
    form.tokens._cache.clear()
    assert form.encode(one, BIG) == expected


def test_render_sample() -> None:
    for kind in KINDS:
        form = chat(kind, "v1")
        encoded = form.encode(record("<image>\nwhat is in the picture?", "a red circle", images=1), BIG)
        text = render_sample(encoded, form.tokenizer, form.image_token_id)
        assert f"<image>×{N}" in text.plain
        assert text.plain.count("<image>") == 1
        green = "".join(text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style))
        assert green.split() in (["a", "red", "circle", "</s>"], ["a", "red", "circle</s>"])
        assert "what is in the picture? ASSISTANT: a red circle" in text.plain
