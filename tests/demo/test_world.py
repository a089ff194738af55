"""The demo's world and the checkpoints that come with it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from basic_lite.data.tokens import IGNORE
from basic_lite.demo import ASSETS
from basic_lite.demo.language import _TOKEN, _encode
from basic_lite.demo.rebuild import rebuild
from basic_lite.demo.text import DESCRIPTIONS, build_tokenizer, conversation, read_lesson
from basic_lite.demo.vision import image_processor, normalised
from basic_lite.demo.world import (
    CAPTION_REQUEST,
    COLOURS,
    COLUMNS,
    NUMBERS,
    QUESTION_TYPES,
    ROWS,
    SHAPES,
    Scene,
    Thing,
    World,
    ask,
    caption,
    caption_f1,
    chance,
    render,
    sample_scene,
    scenes_of,
    write_world,
)

SIZES: dict[str, Any] = {
    "train_scenes": 120,
    "held_out_scenes": 40,
    "captions": 50,
    "questions": 600,
    "eval_questions": 120,
    "eval_captions": 20,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("demo") / "world", 3, **SIZES)


def records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def answers_to(scene: Scene, question: str) -> set[str]:
    """Every answer that `question` admits, worked out from its words alone."""
    colour = next((c for c in COLOURS if re.search(rf"\b{c}\b", question)), None)
    shape = next((s for s in SHAPES if re.search(rf"\b{s}\b", question)), None)
    if question.startswith("how many"):
        return {NUMBERS[len(scene.things) - 1]}
    if question.startswith("what colour"):
        return {t.colour for t in scene.things if t.shape == shape}
    if question.startswith("what shape"):
        return {t.shape for t in scene.things if t.colour == colour}
    if question.startswith("where"):
        return {f"{ROWS[t.cell // 3]} {COLUMNS[t.cell % 3]}" for t in scene.things if t.shape == shape}
    if question.startswith("is there"):
        return {"yes" if any(t.shape == shape for t in scene.things) else "no"}
    match = re.fullmatch(r"at the left, is there a (\w+)\?", question)
    assert match, question
    return {"yes" if t.cell % 3 == 0 else "no" for t in scene.things if t.shape == match.group(1)}


def test_every_question_has_exactly_one_answer() -> None:
    rng = random.Random(0)
    asked: Counter[str] = Counter()
    for _ in range(3000):
        scene = sample_scene(rng, held_out=False)
        for kind in QUESTION_TYPES:
            if question := ask(scene, kind, rng):
                asked[kind] += 1
                assert answers_to(scene, question.text) == {question.answer}, (scene, question)
    assert set(asked) == set(QUESTION_TYPES)
    assert min(asked.values()) > 500


def test_an_unknown_question_type_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        ask(Scene((Thing(0, "red", "ring"),)), "weight", random.Random(0))


def test_scenes_have_distinct_cells_and_objects() -> None:
    rng = random.Random(1)
    for held_out in (False, True):
        for _ in range(500):
            scene = sample_scene(rng, held_out=held_out)
            assert scene.held_out is held_out
            cells = [t.cell for t in scene.things]
            assert cells == sorted(set(cells))
            assert len({t.name for t in scene.things}) == len(scene.things)


def test_held_out_scenes_are_in_no_seeds_training_set() -> None:
    train, held_out = scenes_of(0, 8000, 1000)
    other_train, other_held_out = scenes_of(1, 8000, 1000)
    assert len(set(held_out)) == 1000
    assert not (set(train) | set(other_train)) & (set(held_out) | set(other_held_out))
    assert train != other_train


def test_the_same_seed_writes_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", 3, **SIZES)
    names = sorted(p.relative_to(world.folder) for p in world.folder.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again.folder) for p in again.folder.rglob("*") if p.is_file())
    for name in names:
        assert (world.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
    other = write_world(tmp_path / "other", 4, **SIZES)
    assert other.instruct.read_bytes() != world.instruct.read_bytes()


def test_a_written_world_is_reused_and_another_replaces_it(tmp_path: Path) -> None:
    small: dict[str, Any] = {"train_scenes": 8, "held_out_scenes": 4, "captions": 2, "questions": 12}
    small |= {"eval_questions": 6, "eval_captions": 2}
    lines: list[str] = []
    first = write_world(tmp_path / "world", 0, progress=lines.append, **small)
    stamp = first.pretrain.stat().st_mtime_ns
    assert lines == ["world: 12 of 12 pictures"]
    write_world(tmp_path / "world", 0, progress=lines.append, **small)
    assert first.pretrain.stat().st_mtime_ns == stamp
    assert len(lines) == 1
    before = first.pretrain.read_text()
    write_world(tmp_path / "world", 1, **small)
    assert first.pretrain.read_text() != before
    # Nothing is left beside it.
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no world\.json"):
        write_world(tmp_path, 0, **SIZES)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_more_captions_than_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer captions"):
        write_world(tmp_path / "world", 0, **dict(SIZES, captions=121))


def test_records_are_llava_json(world: World) -> None:
    train, held_out = scenes_of(3, SIZES["train_scenes"], SIZES["held_out_scenes"])
    scenes = train + held_out
    expected = {"pretrain": 50, "instruct": 600, "eval": 120, "eval_captions": 20}
    for name, count in expected.items():
        found = records(getattr(world, name))
        assert len(found) == count
        assert len({r["id"] for r in found}) == count
        for record in found:
            human, gpt = record["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            image, question = human["value"].split("\n")
            assert image == "<image>"
            number = int(record["image"].removesuffix(".png"))
            assert (number >= len(train)) == name.startswith("eval")
            if record["question_type"] == "caption":
                assert (question, gpt["value"]) == (CAPTION_REQUEST, caption(scenes[number]))
            else:
                assert answers_to(scenes[number], question) == {gpt["value"]}


def test_pictures_are_48_by_48_rgb(world: World) -> None:
    files = sorted(world.images.iterdir())
    assert len(files) == SIZES["train_scenes"] + SIZES["held_out_scenes"]
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (48, 48))


def test_objects_are_drawn_inside_their_cells() -> None:
    rng = np.random.default_rng(0)
    for cell in range(9):
        for shape in SHAPES:
            pixels = np.asarray(render(Scene((Thing(cell, "black", shape),)), rng)).mean(axis=2)
            rows, columns = np.nonzero(pixels < 100)
            assert rows.size > 20
            assert {divmod(int(r), 16)[0] for r in rows} == {cell // 3}
            assert {divmod(int(c), 16)[0] for c in columns} == {cell % 3}


def test_question_types_are_balanced_and_chance_is_honest(world: World) -> None:
    instruct = records(world.instruct)
    counts = Counter(r["question_type"] for r in instruct)
    assert counts == dict.fromkeys(QUESTION_TYPES, 100)
    assert set(chance(instruct)) == set(QUESTION_TYPES)
    assert chance(instruct)["existence"] == 0.5
    assert chance(instruct)["side"] == 0.5
    toy = [{"question_type": "x", "conversations": [{"value": "?"}, {"value": v}]} for v in "aaab"]
    assert chance(toy) == {"x": 0.75}


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("red circle top left and blue ring bottom right", 1.0),
        ("Blue ring middle centre and RED circle", 1.0),
        ("red circle top left", 2 / 3),
        ("red ring top left and blue circle bottom right", 0.0),
        ("red circle and red circle", 2 / 3),
        ("", 0.0),
    ],
)
def test_caption_f1(predicted: str, expected: float) -> None:
    reference = "red circle top left and blue ring bottom right"
    assert caption_f1(predicted, reference) == pytest.approx(expected)


def test_caption_f1_of_two_empty_captions_is_one() -> None:
    assert caption_f1("", "nothing here") == 1.0


# ------------------------------------------------------------------------------------------ checkpoints


def test_assets_are_small() -> None:
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) <= 12e6


def test_shipped_tokenizer_is_the_built_one_and_round_trips(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shipped, built = AutoTokenizer.from_pretrained(ASSETS / "llm"), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    assert "<image>" not in shipped.get_vocab()
    rng = random.Random(2)
    for _ in range(100):
        scene = sample_scene(rng, held_out=False)
        questions = [q for kind in QUESTION_TYPES if (q := ask(scene, kind, rng))]
        for text in [caption(scene), *(q.answer for q in questions)]:
            ids = shipped.encode(text)
            assert shipped.unk_token_id not in ids
            assert shipped.decode(ids, skip_special_tokens=True) == text


def test_chat_template_and_image_placeholder() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llm")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    messages = [
        {"role": "system", "content": "describe the image."},
        {"role": "user", "content": "<image>\nWhat colour is the ring?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "where is the red ring?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s>system: describe the image.\nuser: <image>\nWhat colour is the ring?\n"
        "assistant: red</s>\nuser: where is the red ring?\nassistant: "
    )
    words = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
    start = words.index("<image>")
    assert words[start - 2 : start + 4] == ["user", ":", "<image>", "\n", "what", "colour"]
    assert tokenizer.unk_token not in words
    done = tokenizer.apply_chat_template(messages[:3], return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(done["input_ids"], done["assistant_masks"], strict=True) if m]
    assert tokenizer.convert_ids_to_tokens(marked) == ["red", "</s>"]


def test_lessons_are_tokenised_as_the_tokenizer_does_it() -> None:
    tokenizer = build_tokenizer()
    rng = random.Random(4)
    for _ in range(200):
        lesson = read_lesson(rng)
        text = "".join(part for part, _ in lesson)
        sample = _encode(lesson, tokenizer.get_vocab())
        ids, labels = sample["input_ids"], sample["labels"]
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert len(_TOKEN.findall(text)) == len(ids) == len(labels)
        assert {a == b for a, b in zip(ids, labels, strict=True) if b != IGNORE} == {True}
        assert IGNORE in labels
    scene = sample_scene(rng, held_out=False)
    turns = [("where is it?", "top left"), ("how many objects are there?", "one")]
    written = "".join(part for part, _ in conversation("a map", turns))
    messages = []
    for number, (question, answer) in enumerate(turns):
        content = question if number else f"a map\n{question}"
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    assert written == tokenizer.apply_chat_template(messages, tokenize=False)
    assert len(DESCRIPTIONS["map"](scene, rng).split()) == 36


def test_vision_encoder_loads_and_sees_36_patches(world: World) -> None:
    from transformers import CLIPVisionModel

    from basic_lite.model.frontend import load_image_processor

    processor = load_image_processor(ASSETS / "vision")
    encoder = CLIPVisionModel.from_pretrained(ASSETS / "vision")
    pictures = [Image.open(p) for p in sorted(world.images.iterdir())[:3]]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    ours = normalised(np.stack([np.asarray(p) for p in pictures]))
    torch.testing.assert_close(pixels, ours, rtol=1e-5, atol=1e-5)
    assert type(processor) is type(image_processor())
    with torch.no_grad():
        hidden = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    assert hidden.shape == (3, 1 + 36, 96)


@pytest.fixture(scope="module")
def held_out_prompts() -> dict[str, list[tuple[str, str]]]:
    rng = random.Random(5)
    prompts: dict[str, list[tuple[str, str]]] = {kind: [] for kind in QUESTION_TYPES}
    while any(len(found) < 60 for found in prompts.values()):
        scene = sample_scene(rng, held_out=True)
        for kind, found in prompts.items():
            if len(found) < 60 and (question := ask(scene, kind, rng)):
                description = DESCRIPTIONS[("map", "list")[len(found) % 2]](scene, rng)
                found.append((f"{description}\n{question.text}", question.answer))
    return prompts


@pytest.mark.parametrize("nf4", [False, True], ids=["float32", "nf4"])
def test_llm_answers_from_text(held_out_prompts: dict[str, list[tuple[str, str]]], nf4: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llm", padding_side="left")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    more = {"quantization_config": quantisation} if nf4 else {}
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "llm", dtype=torch.float32, **more).eval()
    assert sum(p.numel() for p in model.parameters()) < 2.5e6
    accuracy = {}
    for kind, prompts in held_out_prompts.items():
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            for content, _ in prompts
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=4, do_sample=False
        )
        told = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [a == b for a, (_, b) in zip(told, prompts, strict=True)]
        accuracy[kind] = sum(right) / len(right)
    assert min(accuracy.values()) >= 0.95, accuracy


@pytest.mark.soak
def test_rebuild_is_deterministic(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

    from basic_lite.model.frontend import load_image_processor

    def weights(name: str, seed: int) -> tuple[bytes, bytes]:
        lines: list[str] = []
        rebuild(tmp_path / name, seed, lines.append, vision_steps=2, language_steps=(8, 8))
        assert any("vision" in line for line in lines)
        assert any("language" in line for line in lines)
        return (
            (tmp_path / name / "vision" / "model.safetensors").read_bytes(),
            (tmp_path / name / "llm" / "model.safetensors").read_bytes(),
        )

    first = weights("first", 0)
    assert weights("again", 0) == first
    other = weights("other", 1)
    assert all(a != b for a, b in zip(first, other, strict=True))
    CLIPVisionModel.from_pretrained(tmp_path / "first" / "vision")
    load_image_processor(tmp_path / "first" / "vision")
    AutoModelForCausalLM.from_pretrained(tmp_path / "first" / "llm")
    assert AutoTokenizer.from_pretrained(tmp_path / "first" / "llm").chat_template
