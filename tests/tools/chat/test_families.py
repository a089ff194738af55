"""`chat` with every family that `inspect` opens: each tiny model answers, or one sentence says why it can't."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from basic_lite.data.images import ImageRef, open_image
from basic_lite.errors import UserError
from basic_lite.model.families import FAMILIES
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.command import find_speaker
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.speaker import Manner
from basic_lite.tools.written import Writer, read_processor
from tests.support.runs import write_data
from tests.support.vlm_folders import LACKING, PROCESSED, require_processor, write_llava_with_template, write_vlm

SHORT = Manner(max_new_tokens=4)
FAMILY = {family.name: family for family in FAMILIES}
# The others' processors are slower to make than they differ.
PLAIN = {"Qwen2.5-VL", "PaliGemma"}
TEXTS_ONLY = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
NO_PICTURES = (
    "{% for m in messages %}{{ m['role'] + ' : ' }}{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageRef, ...]:
    folder = tmp_path_factory.mktemp("pictures")
    write_data(folder, 3)
    return tuple(picture(path) for path in sorted((folder / "images").glob("*.png")))


def said(speaker: FolderSpeaker, *messages: Message) -> str:
    return "".join(speaker.reply(messages, SHORT))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] * (name not in PLAIN)) for name in [*PROCESSED, "SmolVLM"]]
)
def test_every_family_answers(name: str, tmp_path: Path, images: tuple[ImageRef, ...]) -> None:
    """As its own processor and transformers' generate do, which the test calls by hand."""
    require_processor(name)
    place = str(write_vlm(tmp_path, name))
    speaker = find_speaker(place, "cpu", "auto")
    assert isinstance(speaker, FolderSpeaker)
    first = Message("user", "what colour is it ?", images[:1])
    answer = said(speaker, first)
    processor, own = read_processor(place, FAMILY[name]), open_image(images[0])
    if name == "PaliGemma":
        inputs = processor(images=[own], text="<image>what colour is it ?", return_tensors="pt")
    else:
        content = [{"type": "image", "image": own}, {"type": "text", "text": "what colour is it ?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
    with torch.no_grad():
        ids = AutoModelForImageTextToText.from_pretrained(place).generate(**inputs, max_new_tokens=4, do_sample=False)
    assert (
        answer == processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
    later = [first, Message("assistant", answer or "red"), Message("user", "and these ?", images[1:])]
    assert isinstance(said(speaker, *later, Message("assistant", "blue"), Message("user", "how many ?")), str)
    assert bool(speaker.note) == (name == "PaliGemma")


@pytest.mark.parametrize("name", list(LACKING))
def test_what_a_family_lacks_is_said(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(LACKING[name]):
        pytest.skip(f"{LACKING[name]} is installed")
    with pytest.raises(UserError, match=LACKING[name]):
        find_speaker(str(write_vlm(tmp_path, name)), "cpu", "auto")


def test_a_model_for_pictures_alone_wants_one(tmp_path: Path) -> None:
    speaker = find_speaker(str(write_vlm(tmp_path, "PaliGemma")), "cpu", "auto")
    with pytest.raises(UserError, match="answers questions about a picture alone; give one"):
        speaker.reply([Message("user", "what ?")], SHORT)


@pytest.mark.parametrize("template", [TEXTS_ONLY, NO_PICTURES])
def test_a_template_for_texts_gets_pictures_as_marks(
    template: str, tmp_path: Path, images: tuple[ImageRef, ...]
) -> None:
    """The inputs are those of a text with the mark in it; a written-out mark of the user's is no picture."""
    write_llava_with_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    speaker = find_speaker(str(tmp_path), "cpu", "auto")
    assert isinstance(speaker, FolderSpeaker)
    message = Message("user", "what colour is it ?", images[:1])
    made = speaker.writer.inputs([speaker._as_chat(message)], answered=False)
    text = "user : <image>\nwhat colour is it ? assistant : "
    by_hand = speaker.processor(images=[open_image(images[0])], text=text, return_tensors="pt")
    assert made["input_ids"].tolist() == by_hand["input_ids"].tolist()
    assert torch.equal(made["pixel_values"], by_hand["pixel_values"])
    assert isinstance(said(speaker, message, Message("assistant", "a <image>"), Message("user", "and ?")), str)


def test_a_template_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    write_llava_with_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no such roles') }}")
    writer = Writer(read_processor(str(tmp_path), FAMILY["LLaVA-1.5"]), "it", FAMILY["LLaVA-1.5"])
    content = [{"type": "text", "text": "what ?"}]
    with pytest.raises(UserError, match=r"chat template of it writes out no question: .*no such roles"):
        writer.inputs([{"role": "user", "content": content}], answered=False)
