"""Token map and attention of an answer, against attention maps and cosines computed the plain way; the panels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from basic_lite.supervision.picture_maps import shown_word
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.inside import look_inside
from basic_lite.tools.chat.of_run import RunSpeaker, record_of
from basic_lite.tools.maps.panels import panels
from tests.support.maps import drawn_maps


@pytest.fixture
def messages(images: Path) -> list[Message]:
    red, blue = (picture(images / f"{n}.png") for n in (0, 1))
    return [
        Message("user", "what colour is it ?", (red,)),
        Message("assistant", "it is red"),
        Message("user", "and the left one in the picture ?", (blue,)),
        Message("assistant", "it is blue ."),
    ]


def test_attention_is_the_last_answers(run_speaker: RunSpeaker, messages: list[Message]) -> None:
    found = look_inside(run_speaker, messages)
    layers = found[0].layers
    parts, chat = run_speaker.loaded.parts, run_speaker.chat
    record = record_of(messages)
    encoded = chat.encode(record, 10_000)
    asked, ids = len(chat.prompt(record)), torch.tensor(encoded.input_ids)
    config = parts.language_model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            out = parts.model.model(**run_speaker.inputs(record, encoded.input_ids), output_attentions=True)
    finally:
        config._attn_implementation = before
    maps = torch.stack(out.attentions[:layers]).mean(dim=(0, 1, 2))  # [T, T], over layers and heads
    answered = torch.tensor([label != -100 for label in encoded.labels])
    answered[:asked] = False
    expected = maps[answered].mean(dim=0)[ids == chat.image_token_id]
    given = torch.tensor([one.attention for one in found]).flatten()
    assert len(found) == 2 and len(given) == 2 * run_speaker.loaded.frontend.tokens_per_image
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-7)
    assert found[0].mass == pytest.approx(float(expected[: len(expected) // 2].sum()), rel=1e-4)


def test_words_are_the_nearest_of_v(run_speaker: RunSpeaker, messages: list[Message]) -> None:
    found = look_inside(run_speaker, messages)
    layers = found[0].layers
    parts, record = run_speaker.loaded.parts, record_of(messages)
    ids = run_speaker.chat.encode(record, 10_000).input_ids
    with torch.no_grad():
        inputs = run_speaker.inputs(record, ids)
        v = torch.cat(list(parts.model.model.get_image_features(inputs["pixel_values"]).pooler_output))
        hidden = parts.model.model(**inputs, output_hidden_states=True).hidden_states
    weights = [h**2 for h in range(1, layers + 1)]
    rows = torch.tensor(ids) == run_speaker.chat.image_token_id
    target = sum(w * hidden[h][0, rows].float() for h, w in enumerate(weights, start=1))
    known = run_speaker.loaded.vocabulary_ids
    table = torch.nn.functional.normalize(parts.embeddings.weight[known].float(), dim=1)
    for vectors, place in ((v, 0), (hidden[1][0, rows], 1), (target, -1)):
        nearest = known[(vectors.float() @ table.T).argmax(dim=1)]
        expected = [shown_word(run_speaker.loaded.tokenizer, int(i)) for i in nearest]
        assert [word for one in found for word in one.words[place]] == expected
    assert [(one.name, one.rows, one.columns) for one in found] == [("0.png", 2, 2), ("1.png", 2, 2)]
    red, blue = (one.image().getpixel((168, 168)) for one in found)
    assert red[0] > 150 > red[2] and blue[2] > 150 > blue[0]


def test_only_the_conversation_is_read(run_speaker: RunSpeaker, messages: list[Message]) -> None:
    whole = look_inside(run_speaker, messages)
    first = look_inside(run_speaker, messages[:2])
    assert len(first) == 1 and first[0].words == whole[0].words  # later text doesn't reach back
    assert first[0].attention != whole[0].attention


@pytest.mark.parametrize(("side", "printed"), [(6, True), (10, True), (24, False)])
def test_panels_have_every_patch_and_print_words_that_fit(side: int, printed: bool) -> None:
    html = panels([drawn_maps(side, ["dog", "<b>&\"'"])])
    cells = re.findall(r'<b tabindex="-1" data-tip="([^"]*)"[^>]*>([^<]*)</b>', html)
    assert len(cells) == 4 * side * side
    attention, v, _, target = (cells[n * side * side : (n + 1) * side * side] for n in range(4))
    total = sum(0.001 * (n % 7) for n in range(side * side))
    assert attention[6][0] == f"{0.006 / total:.1%} (a = 0.0060)"
    assert v[1] == ("&lt;b&gt;&amp;&quot;&#x27;, sink", "&lt;b&gt;&amp;&quot;&#x27;" if printed else "")
    assert v[2] == ("dog (in the text)", "dog" if printed else "") and {tip.split(",")[0] for tip, _ in target} == {
        "sky"
    }
    assert "layers 1 to 2" in html and f"sky × {side * side}" in html and "1 sink (ring)" in html
    # Colours tell words apart only where there is no room to read them.
    assert ("background:rgb(" in html) is not printed and ('class="k0' in html) is not printed


def test_panels_of_several_pictures_are_numbered() -> None:
    html = panels([drawn_maps(2, ["dog"]), drawn_maps(2, ["cat"])])
    assert html.index("picture 2") < html.index("cat") < html.index("picture 1") < html.index("dog")
    assert html.index("<details open><summary>picture 2") < html.index("<details><summary>picture 1")
    assert "<details" not in panels([drawn_maps(2, ["dog"])])
    dark = replace(drawn_maps(1, ["a"]), attention=[0.0], sinks=[])
    assert "0.0% (a = 0.0000)" in panels([dark])
    assert "be read: it is no plain softmax" in panels([replace(dark, attention=None)])


def test_attention_has_one_scale_over_all_pictures_which_sinks_are_left_out_of() -> None:
    strong, weak, sink = (
        replace(drawn_maps(1, ["a"]), attention=[a], sinks=sinks) for a, sinks in ((0.4, []), (0.1, []), (0.9, [0]))
    )
    heat = re.findall(r"rgba\(255, 90, 0, ([\d.]+)\)", panels([strong, weak, sink]))
    assert heat == ["0.85", "0.21", "0.85"]  # newest first


def test_words_without_text_have_their_name(run_speaker: RunSpeaker) -> None:
    tokenizer = run_speaker.loaded.tokenizer
    assert shown_word(tokenizer, tokenizer.convert_tokens_to_ids("red")) == "red"
    assert shown_word(tokenizer, tokenizer.eos_token_id) == "</s>"
