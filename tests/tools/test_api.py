"""The names that ``basic_lite`` hands out, as a program or a notebook uses them."""

from __future__ import annotations

import gc
import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import basic_lite
from basic_lite import Interrupted, Model, TrainedModel, UserError, load_recipe, open_model, open_run, train
from basic_lite.data.images import open_image
from basic_lite.data.memory import picture_of
from basic_lite.data.records import Record, Turn
from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.recipe import dump_recipe
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.training.step import TrainStep
from tests.support.runs import LOUD, quiet, tiny_recipe, write_data

QUESTION = "what colour is it ?"


@pytest.fixture(scope="session")
def model(trained: Path) -> TrainedModel:
    return open_run(trained, device="cpu")


@pytest.fixture(scope="session")
def images(trained: Path) -> Path:
    """Folder of the run's pictures: 0.png is red, 1.png blue, 2.png green."""
    return trained.parent.parent / "images"


# --- the package -----------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, basic_lite\n"
        "assert set(dir(basic_lite)) == set(basic_lite.__all__) >= {'train', 'open_run', 'load_recipe', 'UserError'}\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'PIL', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from basic_lite import load_recipe\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing such a module would put it in the name's place."""
    modules = {module.name for module in pkgutil.iter_modules(basic_lite.__path__)}
    assert not modules & set(basic_lite.__all__)
    assert set(basic_lite._HOMES) | {"Interrupted", "UserError", "__version__"} == set(basic_lite.__all__)
    assert all(getattr(basic_lite, name) for name in basic_lite.__all__)
    with pytest.raises(AttributeError, match="trian"):
        basic_lite.trian  # noqa: B018


# --- asking ----------------------------------------------------------------------------------------------


def test_pictures_of_every_kind(model: TrainedModel, images: Path) -> None:
    opened = Image.open(images / "1.png")
    kinds = [images / "1.png", str(images / "1.png"), (images / "1.png").read_bytes(), opened, [images / "1.png"]]
    assert [model.ask(one, QUESTION) for one in kinds] == ["it is blue"] * 5
    assert model.ask(images / "0.png", QUESTION) == "it is red"
    assert model.ask([images / "0.png", opened], QUESTION)
    assert model.ask(None, QUESTION) == model.ask([], QUESTION) != ""
    assert (model.step, model.folder.name, model.bundle.name) == (80, "tiny", "final")
    assert model.recipe.name == "tiny" and "tiny" in repr(model)


def test_a_conversation_remembers(model: TrainedModel, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[tuple[str, str, int]]] = []
    speaker = model._speaker
    reply = speaker.reply

    def remembering(messages: Any, manner: Any) -> Any:
        asked.append([(m.role, m.text, len(m.pictures)) for m in messages])
        return reply(messages, manner)

    monkeypatch.setattr(speaker, "reply", remembering)
    talk = model.chat(max_new_tokens=8)
    first = talk.ask(QUESTION, images / "1.png")
    assert first == "it is blue"
    second = talk.ask("is it red ?")
    third = talk.ask("and ?", [images / "0.png", images / "2.png"])
    assert asked[1] == [("user", QUESTION, 1), ("assistant", first, 0), ("user", "is it red ?", 0)]
    assert asked[2][-1] == ("user", "and ?", 2) and len(asked[2]) == 5
    assert [m.text for m in talk.messages] == [QUESTION, first, "is it red ?", second, "and ?", third]
    talk.clear()
    talk.ask(QUESTION, images / "1.png")
    assert len(asked[3]) == 1


def test_what_is_refused(model: TrainedModel, images: Path, tmp_path: Path) -> None:
    for pictures, question, says in (
        ("nowhere.png", QUESTION, "there is no picture nowhere.png"),
        (images, QUESTION, "images is a folder; name pictures in it"),
        (b"no picture", QUESTION, "can't be decoded"),
        ([3.5], QUESTION, "a picture is a path, bytes or a PIL image, and this is 3.5"),
        (None, " ", "the question is empty"),
        (QUESTION, str(images / "0.png"), "is a picture, and it .* question belongs; the picture comes first"),
        (3, QUESTION, "a picture is a path, bytes or a PIL image, and this is 3"),
        ([None], QUESTION, "a picture is a path, bytes or a PIL image, and this is None"),
        (images / "0.png", None, "the question is a text, and this is None; the picture comes first"),
    ):
        with pytest.raises(UserError, match=says):
            model.ask(pictures, question)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the question comes first, then the pictures"):
        model.chat().ask(str(images / "0.png"), QUESTION)
    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"temperature": -1}, {"temperature": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            model.chat(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"temperature 1e-09 is too low to draw with; give 0, or 0.001 or more"):
        model.chat(temperature=1e-9)
    with pytest.raises(UserError, match=r"temperature is '0.5'; give 0"):
        model.chat(temperature="0.5")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        open_run(tmp_path / "nowhere")
    for empty in ("", None):
        with pytest.raises(UserError, match=r"open_run takes a run folder, such as 'runs/NAME', .*; name one"):
            open_run(empty)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the name is longer than file systems take; shorten it"):
        open_model("x" * 300)
    with pytest.raises(UserError, match="device is 'gpu', which is none of auto, cpu, cuda; did you mean cuda"):
        open_run(tmp_path, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"train takes a recipe, and this is 'photos.yaml'; load_recipe reads one"):
        train("photos.yaml")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"load_recipe takes a file, .*, and this is None; name one"):
        load_recipe(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--checkpoint chooses the checkpoint for --resume; add --resume"):
        train(model.recipe, checkpoint=80)  # it would begin anew


def test_what_holds_a_pictures_bytes_says_how_to_hand_them_over(model: TrainedModel, images: Path) -> None:
    data = (images / "0.png").read_bytes()
    with (images / "0.png").open("rb") as file:
        for held, says in (
            (io.BytesIO(data), "give the bytes that its read"),
            (file, "give the bytes that its read"),
            (bytearray(data), "make bytes of it"),
            (memoryview(data), "make bytes of it"),
            (b"%PDF-1.7", "it is a PDF.; save its pages as JPEG, or take another picture"),
            ("", "the name of a picture is empty"),
            ("https://a.b/c.png", "is an address, and pictures are files; download it"),
        ):
            with pytest.raises(UserError, match=says):
                model.ask(held, QUESTION)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_half_a_character_are_taken(model: TrainedModel, images: Path) -> None:
    assert model.ask(images / "0.png", QUESTION, max_new_tokens=np.int64(8)) == "it is red"  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer is cut
        assert model.ask(None, f"{QUESTION} \ud800", max_new_tokens=2, temperature=np.float32(0.5)) is not None


def test_a_cut_answer_is_a_warning_where_it_was_asked(model: TrainedModel, images: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert model.ask(images / "1.png", QUESTION, max_new_tokens=2) == "it is"
        model.chat(max_new_tokens=2).ask(QUESTION, images / "1.png")
    said = "the answer was cut: it has 2 tokens; max_new_tokens allows more"
    assert [(str(one.message), one.filename) for one in seen] == [(said, __file__)] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.ask(images / "1.png", QUESTION)


def test_an_exported_folder_is_asked_too(trained: Path, images: Path, tmp_path: Path) -> None:
    from basic_lite.tools.export.command import export

    export(trained, tmp_path / "out", samples=0, device="cpu", console=quiet())
    exported = open_model(tmp_path / "out", device="cpu")
    assert type(exported) is Model and exported.ask(images / "1.png", QUESTION, max_new_tokens=8) == "it is blue"
    with pytest.raises(UserError, match=r"out is no run, .*; open the run that it was exported from with open_run"):
        exported.evaluate([{"image": str(images / "1.png"), "question": QUESTION, "answer": "it is blue"}])
    assert isinstance(open_model(trained, device="cpu"), TrainedModel)


# --- evaluating ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_records_of_a_program_score_as_those_of_a_file(
    model: TrainedModel, trained: Path, images: Path, tmp_path: Path
) -> None:
    data = trained.parent.parent / "data.json"
    out = tmp_path / "p.jsonl"
    told = evaluate_run(trained, data, image_dir=images, out=out, device="cpu", console=quiet())
    of_file = model.evaluate(data, image_dir=images)
    assert of_file == told and of_file.exact_match == told.accuracy["all"]
    rows = json.loads(data.read_text())
    held = [{**row, "image": Image.open(images / row["image"])} for row in rows]
    of_held = model.evaluate(held)  # of a PIL image it can't be told
    assert all(one.trained_on is None and not one.image_digests for one in of_held.predictions)
    marked = [replace(one, trained_on=None, image_digests=[]) for one in told.predictions]
    assert of_held == replace(told, predictions=marked)
    assert model.evaluate(rows, image_dir=images, limit=3).counts["all"] == 3
    assert model.evaluate(model.recipe.data.train) == told
    assert model.evaluate(model.recipe.data.train, limit=2).counts["all"] == 2
    plain = [{"question": QUESTION, "answer": "It is RED.", "image": images / "0.png"}]
    done: list[int] = []
    assert model.evaluate(plain, progress=done.append, controls=0).exact_match == 1.0 and done == [1]
    assert model.evaluate(plain, progress=done.append).predictions[0].no_picture and done == [1, 1, 1]
    turns = (Turn("human", QUESTION), Turn("gpt", "it is blue"))
    assert model.evaluate([Record(1, "", "", (picture_of(images / "1.png"),), turns)]).exact_match == 1.0
    of_file.save(tmp_path / "saved.jsonl")
    for wrong in (None, 5, b"saved.jsonl"):
        with pytest.raises(UserError, match=r"^save takes the path of a file, .* and this is "):
            of_file.save(wrong)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^open_run takes a run folder, .* and this is "):
            open_run(wrong)  # type: ignore[arg-type]
    assert (tmp_path / "saved.jsonl").read_text() == out.read_text()
    assert "prediction" not in repr(of_file) and model.evaluate([{"question": QUESTION}]).exact_match is None


def test_records_that_cannot_be_asked(model: TrainedModel, images: Path) -> None:
    fine = {"question": QUESTION, "answer": "it is red", "image": images / "0.png"}
    with pytest.raises(UserError, match="stands alone"):
        model.evaluate([fine, model.recipe.data.train])  # type: ignore[list-item]
    for rows, says in (
        ([], "no record to evaluate"),
        (None, "records is None; give a file, a list of dicts, or the data of a recipe"),
        (fine, "records is .*; give a file, a list of dicts"),
        (
            [fine, {**fine, "image": "nowhere.png"}],
            r"(?s)record 2: image 'nowhere.png' does not exist.* so mend what is named, or take it out",
        ),
        (
            [{**fine, "image": "nowhere.png"}, fine, {**fine, "image": "gone.png"}],
            r"2 pictures can't be shown:\n  .*record 1: image 'nowhere.png' .*\n  .*record 3: image 'gone.png' ",
        ),
        ([fine, {**fine, "image": 3.5}], "record 2: a picture is a path, bytes or a PIL image, and this is 3.5"),
        ([{**fine, "question": "<image>"}], "record 1: it has no question"),
        (["what?"], "record 1: a record must be an object"),
    ):
        with pytest.raises(UserError, match=says):
            model.evaluate(rows)  # type: ignore[arg-type]
    for recipe in (model.recipe, model.recipe.data):
        with pytest.raises(UserError, match=r"or the data of a recipe, as in recipe\.data\.train"):
            model.evaluate(recipe)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="template is 'v2', which is none of plain, v1, tokenizer; did you mean v1"):
        model.evaluate([fine], template="v2")  # type: ignore[arg-type]
    for name in ("image_dir", "annotations"):
        with pytest.raises(UserError, match=f"{name} takes a path, and this is 3; name one"):
            model.evaluate([fine], **{name: 3})  # type: ignore[arg-type]
    for name, value in (
        ("batch_size", 0),
        ("batch_size", None),
        ("limit", -1),
        ("max_new_tokens", 2.5),
        ("controls", -1),
    ):
        with pytest.raises(UserError, match=f"{name} is {value}; give a whole number, at least 1"):
            model.evaluate([fine], **{name: value})  # type: ignore[arg-type]


def test_a_pil_image_is_seen_upright(tmp_path: Path) -> None:
    turned = Image.new("L", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        ref = picture_of(opened)
    assert open_image(ref).size == (2, 4) == open_image(picture_of(tmp_path / "turned.jpg")).size
    assert (ref.name, picture_of(Image.new("RGB", (1, 1))).name) == ("turned.jpg", "(PIL image)")


# --- recipes ---------------------------------------------------------------------------------------------


def test_overrides_as_python_has_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(tiny_recipe(tmp_path)))
    train = {"path": tmp_path / 'it\'s "mine": #1.json'}
    changes = {"data.train": train, "data.train.limit": 3, "training.betas": (0.5, 0.6), "model.projector": None}
    recipe = load_recipe(path, changes)
    assert recipe.data.train.path == str(train["path"]) and recipe.data.train.limit == 3  # type: ignore[union-attr]
    assert recipe.training.betas == (0.5, 0.6) and train == {"path": tmp_path / 'it\'s "mine": #1.json'}
    for wrong, says in (
        ({"training.max_stps": 3}, "overrides: training.max_stps: there is no such key; did you mean"),
        ({"training.max_steps": "3"}, "expected an integer"),
        ({"": 3}, "expected a key such as training.micro_batch, found ''"),
        ({3: 3}, "expected a key such as training.micro_batch, found 3"),
        ("seed=3", "overrides are a list of texts"),
    ):
        with pytest.raises(UserError, match=says):
            load_recipe(path, wrong)  # type: ignore[arg-type]


# --- training --------------------------------------------------------------------------------------------


def models_alive() -> int:
    gc.collect()
    return sum(isinstance(one, BasicLlavaForConditionalGeneration) for one in gc.get_objects())


@pytest.mark.soak
def test_a_second_run_in_a_program_is_as_good_as_the_first(tmp_path: Path) -> None:
    write_data(tmp_path, 8)
    changes = {**LOUD, "lora.dropout": 0.2}
    before = models_alive()
    train(tiny_recipe(tmp_path, {"name": "other", "seed": 3, "training.max_steps": 2}), console=quiet())
    result = train(tiny_recipe(tmp_path, {**changes, "name": "second"}), console=quiet())
    assert models_alive() == before
    (tmp_path / "r.yaml").write_text(dump_recipe(tiny_recipe(tmp_path, {**changes, "name": "alone"})))
    program = (
        "import json\nfrom basic_lite import load_recipe, train\n"
        f"print(json.dumps(train(load_recipe({str(tmp_path / 'r.yaml')!r})).history))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    terms = ("step", "loss", "lm", "das", "sds")
    ours, alone = (
        [[line[term] for term in terms] for line in history if "loss" in line]  # looks have lines of their own
        for history in (result.history, json.loads(done.stdout))
    )
    assert ours == alone
    opened = open_run(result.folder, device="cpu")
    assert "history" not in repr(result) and opened.step == result.steps == len(alone)
    del opened
    assert models_alive() == before


@pytest.fixture
def _interrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone presses Ctrl-C in the second step."""
    real, steps = TrainStep.gradients, iter(range(1, 100))

    def gradients(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "gradients", gradients)


@pytest.mark.usefixtures("_interrupting")
def test_a_stopped_run_can_be_continued_and_holds_no_memory(tmp_path: Path) -> None:
    before, recipe = models_alive(), tiny_recipe(tmp_path, {"training.micro_batch": 4})
    with pytest.raises(Interrupted) as stopped:
        train(recipe, console=quiet())
    kept = stopped.value  # as a notebook keeps it
    assert kept.checkpoint is not None and kept.checkpoint.name == "checkpoint-2" and models_alive() == before
    assert train(recipe, resume=True, console=quiet()).steps == 4


def test_training_in_a_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    handler, seen = signal.getsignal(signal.SIGINT), []
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1})
    thread = threading.Thread(target=lambda: seen.append(train(recipe, console=quiet())))
    thread.start()
    thread.join(timeout=60)
    assert seen[0].steps == 1 and signal.getsignal(signal.SIGINT) is handler
