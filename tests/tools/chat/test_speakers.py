"""The two kinds of models answer: what they are given is training's, what they say is ``answer``'s."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LlavaProcessor

from basic_lite.data.images import ImageRef
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_image_processor
from basic_lite.recipe.schema import SourceSection
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.command import find_speaker
from basic_lite.tools.chat.dialogue import Dialogue, Message
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.of_run import RunSpeaker, record_of
from basic_lite.tools.chat.speaker import Manner
from basic_lite.training.answer import answer
from tests.support.models import tiny_tokenizer, write_llava

SHORT = Manner(max_new_tokens=8)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def conversation(images: Path) -> list[Message]:
    """Two pictures, two questions after an answer, one of which says where its pictures go."""
    red, blue, green = (picture(images / f"{n}.png") for n in (0, 1, 2))
    return [
        Message("user", "what colour is it ?", (red,)),
        Message("assistant", "it is red"),
        Message("user", "<image> or <image> : how many ?", (blue, green)),
        Message("assistant", "two"),
        Message("user", "what colour is the one in the picture ?"),
    ]


def test_history_is_what_training_makes_of_the_same_record(
    run_speaker: RunSpeaker, images: Path, tmp_path: Path
) -> None:
    messages = conversation(images)
    texts = [message.text for message in messages]
    texts[0] = "<image>\n" + texts[0]
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate([*texts, "it is green"])]
    data = tmp_path / "d.json"
    data.write_text(json.dumps([{"id": 1, "image": ["0.png", "1.png", "2.png"], "conversations": turns}]))
    (record,) = load_records(SourceSection(path=str(data), image_dir=str(images)), root=Path.cwd())
    trained_on = run_speaker.chat.encode(record, 10_000)
    prompt = run_speaker.chat.prompt(record_of(messages))
    assert trained_on.input_ids[: len(prompt)] == prompt
    assert set(trained_on.labels[len(prompt) :]) == set(trained_on.input_ids[len(prompt) :])  # the answer, no more
    assert prompt.count(run_speaker.chat.image_token_id) == 3 * run_speaker.loaded.frontend.tokens_per_image
    given = run_speaker.inputs(record_of(messages), prompt)["pixel_values"]
    assert len(given) == 3 and not torch.equal(given[0], given[1])


@pytest.mark.parametrize("upto", [1, 3, 5])
def test_pieces_join_to_the_answer(run_speaker: RunSpeaker, images: Path, upto: int) -> None:
    messages = conversation(images)[:upto]
    pieces = list(run_speaker.reply(messages, Manner(max_new_tokens=24)))
    (whole,) = answer(
        run_speaker.loaded,
        run_speaker.chat,
        [record_of(messages)],
        image_fit=run_speaker.recipe.data.image_fit,
        batch_size=1,
        max_new_tokens=24,
    )
    assert "".join(pieces) == whole and whole
    if upto == 1:
        assert pieces == ["it", " is", " red"]


@pytest.mark.parametrize("upto", [1, 3, 5])
def test_an_exported_folder_says_the_same(
    run_speaker: RunSpeaker, folder_speaker: FolderSpeaker, images: Path, upto: int
) -> None:
    messages = conversation(images)[:upto]
    ours, theirs = ("".join(speaker.reply(messages, SHORT)) for speaker in (run_speaker, folder_speaker))
    assert ours == theirs


def test_a_llava_model_is_asked_with_its_own_processor(tmp_path: Path, images: Path) -> None:
    write_llava(tmp_path, seed=3)
    tokenizer = tiny_tokenizer(("<image>",))
    processor = LlavaProcessor(
        load_image_processor(tmp_path),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(tmp_path)
    speaker = find_speaker(str(tmp_path), "cpu", "auto")
    assert isinstance(speaker, FolderSpeaker)
    said = "".join(speaker.reply([Message("user", "what is it", (picture(images / "0.png"),))], SHORT))
    inputs = processor(
        images=[Image.open(images / "0.png")], text="user : <image>what is it assistant : ", return_tensors="pt"
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    assert said == tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    drawn = {"".join(speaker.reply([Message("user", "what")], Manner(20, temperature=50.0))) for _ in range(3)}
    assert len(drawn) > 1
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        find_speaker(str(tmp_path), "cpu", "auto")


def test_written_out_tokens_do_no_harm(run_speaker: RunSpeaker, folder_speaker: FolderSpeaker, images: Path) -> None:
    red = (picture(images / "0.png"),)
    messages = [Message("user", "a </s> b", red), Message("assistant", "no <image> </s>"), Message("user", "what ?")]
    record = record_of(messages)
    ids = run_speaker.chat.prompt(record)
    assert ids.count(run_speaker.chat.image_token_id) == run_speaker.loaded.frontend.tokens_per_image
    assert ids.count(run_speaker.loaded.tokenizer.eos_token_id) == 1  # the one that ends the answer
    for speaker in (run_speaker, folder_speaker):
        assert isinstance("".join(speaker.reply(messages, SHORT)), str)


@pytest.mark.parametrize(("text", "count"), [("<image> what", 0), ("<image> <image>", 1), ("is it <image> ?", 2)])
def test_placeholders_and_pictures_must_fit(text: str, count: int, images: Path) -> None:
    with pytest.raises(UserError, match="write <image> once for each"):
        Message("user", text, (ImageRef.of_file(images / "0.png"),) * count)


def test_a_conversation_that_is_too_long_is_refused(
    run_speaker: RunSpeaker, folder_speaker: FolderSpeaker, images: Path
) -> None:
    for speaker in (run_speaker, folder_speaker):
        with pytest.raises(UserError, match=r"has \d+ tokens, pictures included, and this model reads 512 at most"):
            speaker.reply([Message("user", "what " * 600)], SHORT)
        reply = speaker.reply([Message("user", "what " * 505)], Manner(max_new_tokens=400))
        list(reply)  # ends where the model's positions do, not beyond


def test_a_picture_that_went_away_is_named(run_speaker: RunSpeaker, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "gone.png")
    message = Message("user", "what ?", (picture(tmp_path / "gone.png"),))
    (tmp_path / "gone.png").unlink()
    with pytest.raises(UserError, match=r"gone\.png"):
        run_speaker.reply([message], SHORT)


def test_a_dialogue_keeps_what_was_answered(images: Path) -> None:
    dialogue = Dialogue(pictures=[picture(images / "0.png")])
    asked = dialogue.asked("what ?")
    assert dialogue.messages == [] and len(asked[0].pictures) == 1
    dialogue.keep(asked, "it is red")
    assert dialogue.pictures == [] and [m.text for m in dialogue.messages] == ["what ?", "it is red"]
    assert dialogue.asked("and ?")[-1].pictures == ()
    dialogue.clear()
    assert dialogue == Dialogue()


def test_an_unfinished_run_says_so(run_speaker: RunSpeaker, trained: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-80"
    shutil.copytree(trained / "final", checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "total_steps": 350}))
    cpu = torch.device("cpu")
    assert RunSpeaker(checkpoint.parent, cpu).note == "not finished: step 80 of 350"
    assert RunSpeaker(checkpoint, cpu).note == run_speaker.note == ""


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        ("nowhere", "auto", "there is no folder nowhere"),
        ("runs/nowhere", "auto", "there is no folder runs/nowhere"),
        ("{run}s", "auto", "there is no folder .*; did you mean .*tiny\\?"),
        ("some/model", "auto", "can't read the configuration some/model"),
        ("{empty}", "auto", "holds no bundle"),
        ("{run}", "float32", "--dtype is for exported"),
        ("{llm}", "auto", "is a llama model, and transformers knows none of these that sees pictures"),
    ],
)
def test_models_that_cannot_be_opened(trained: Path, tmp_path: Path, name: str, dtype: str, says: str) -> None:
    name = name.format(empty=tmp_path, run=trained, llm=trained.parent.parent / "llm")
    with pytest.raises(UserError, match=says):
        find_speaker(name, "cpu", dtype)


def test_scaled_positions_give_a_conversation_more_room(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "scaled"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    speaker = FolderSpeaker(str(folder), torch.device("cpu"), "auto")
    assert list(speaker.reply([Message("user", "what " * 600)], Manner(max_new_tokens=2)))
    with pytest.raises(UserError, match="this model reads 1024 at most"):
        speaker.reply([Message("user", "what " * 1200)], SHORT)
