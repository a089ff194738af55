"""The real world's parts that need no package: names, kinds, questions, colours, and the tower's translation."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, SiglipVisionModel

from bench.world import packages, pictures
from bench.world.captions import QUESTION_TYPES, Shown, caption_record, kind_of, name_of, question_record, shared_words
from bench.world.colours import standing_out
from bench.world.packages import Unavailable, made_once, unpacked_deb
from bench.world.retrieval import ranks
from bench.world.tower import CONFIG, PATCH, write_tower


@pytest.mark.parametrize(
    ("stem", "title", "name"),
    [
        ("cigno_architetto_frances_01", "Cigno", "cigno"),
        ("contour_giraffe", "Clipart by Nicu Buculei - contour_chipmunk", "contour giraffe"),
        ("star_67pt11step", "gramastar", "star"),
        ("gg_01", "", ""),
        ("a_very_long_name_of_a_file_that_nobody_can_learn_by_heart_at_all", "", ""),
    ],
)
def test_names(stem: str, title: str, name: str) -> None:
    assert name_of(stem, f"<svg><dc:title>{title}</dc:title></svg>") == name


def test_kinds_come_from_the_folder() -> None:
    assert kind_of("animals/mammals/dogs") == "mammal" and kind_of("signs_and_symbols/flags/europe") == "flag"
    assert kind_of("animals/birds") == "bird" and kind_of("unsorted") is None


def test_questions_have_right_answers() -> None:
    goose, flag = Shown("1.png", "bird", "goose", "grey"), Shown("2.png", "flag", "france", "red")
    answers: dict[str, set[tuple[str, str]]] = {kind: set() for kind in QUESTION_TYPES}
    for seed in range(40):
        for kind in QUESTION_TYPES:
            record = question_record(0, goose, kind, [goose, flag], random.Random(seed))
            question, answer = (turn["value"] for turn in record["conversations"])
            assert record["image"] == "1.png" and record["question_type"] == kind
            answers[kind].add((question.removeprefix("<image>\n"), answer))
    assert {answer for _, answer in answers["kind"]} == {"bird"} and {a for _, a in answers["colour"]} == {"grey"}
    assert answers["choice"] == {
        ("Which one is it: goose, or france?", "goose"), ("Which one is it: france, or goose?", "goose"),
    }  # fmt: skip
    assert answers["shown"] == {("Is this goose?", "yes"), ("Is this france?", "no")}
    assert caption_record(3, goose, {"goose"})["conversations"][1]["value"] == "a grey bird: goose"


def test_captions_have_the_words_that_pictures_share() -> None:
    shown = [Shown(f"{i}.png", "flag", name, "orange") for i, name in enumerate(["flag of france"] * 5 + ["oca"])]
    known = shared_words(shown)
    assert known == {"flag", "of", "france"}
    assert [one.caption(known) for one in shown[4:]] == ["an orange flag: of france", "an orange flag"]


def test_the_vivid_colour_stands_out() -> None:
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste((190, 30, 35), (0, 0, 20, 20))
    picture.paste((125, 125, 125), (20, 20, 40, 40))
    assert standing_out(picture)[:2] == ["red", "grey"]


def test_squares_are_white_at_the_edge_and_damage_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (300, 100), "blue").save(tmp_path / "wide.png")
    square = pictures._square(tmp_path / "wide.png")
    assert square is not None and square.size == (pictures.SIDE, pictures.SIDE)
    assert square.getpixel((2, 2)) == (255, 255, 255) and square.getpixel((64, 64)) == (0, 0, 255)
    (tmp_path / "broken.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    assert pictures._square(tmp_path / "broken.png") is None


def test_a_folder_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASIC_LITE_REAL_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        made_once("x", lambda folder: (folder / "a").write_text(str(1 // 0)) and None)
    assert not (tmp_path / "x").exists()
    made: list[Path] = []
    assert made_once("x", made.append) == made_once("x", made.append) == tmp_path / "x" and len(made) == 1


def test_without_apt_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASIC_LITE_REAL_CACHE", str(tmp_path))
    monkeypatch.setattr(packages.shutil, "which", lambda program: None)
    with pytest.raises(Unavailable, match=r"openclipart-png.*no apt-get"):
        unpacked_deb("openclipart-png", tmp_path)


def test_the_tower_computes_dinov2s_layers(tmp_path: Path) -> None:
    """With random weights: the layers of transformers' own DINOv2, on the same tokens without a class token."""
    torch.manual_seed(0)
    theirs = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=PATCH))
    for name, parameter in theirs.named_parameters():
        if "lambda" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.1, 0.5)
    renamed = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    weights = {}
    for name, value in theirs.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(f"attention.{new}", f"attention.{old}")
        weights[name] = value
    write_tower(tmp_path, (weights, torch.randn(1, 37 * 37, 384)), side=28)
    ours = SiglipVisionModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        states = ours(pixel_values=pixels, output_hidden_states=True).hidden_states
        expected = theirs.embeddings.patch_embeddings(pixels)
        assert states[0].shape == expected.shape == (2, 4, 384)
        hidden = states[0]
        for layer in theirs.encoder.layer:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    assert len(states) == CONFIG["num_hidden_layers"] + 1
    torch.testing.assert_close(states[-1], hidden, rtol=1e-4, atol=1e-4)


def test_ranks_count_the_same_caption_once() -> None:
    vectors = torch.eye(3)[[0, 1, 1, 2]]
    captions = ["a", "b", "b", "c"]
    guessed = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [1.0, 0.9, 0.0], [1.0, 0.9, 0.8]])
    np.testing.assert_array_equal(ranks(guessed, vectors, captions), [1, 1, 2, 3])
