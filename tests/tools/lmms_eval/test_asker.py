"""A run asked as lmms-eval asks: eval's own answers, and likelihoods as a naive computation has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import basic_lite.tools.lmms_eval.asker as asker_module
from basic_lite.data.images import ImageRef
from basic_lite.errors import UserError
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.lmms_eval.arguments import Generation, Opening
from basic_lite.tools.lmms_eval.asker import Asked, Asker
from basic_lite.training.answer import chat_format
from basic_lite.training.bundle import load_trained
from tests.support.bundles import random_run
from tests.support.likelihood import Naive
from tests.support.runs import quiet, write_data

TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and questions of it: with a picture, with two, and without."""
    folder = tmp_path_factory.mktemp("asked")
    records = json.loads(write_data(folder, 9, text_only=2).read_text())
    turns = [{"from": "human", "value": "<image>\n<image>\nis it the red one ?"}, {"from": "gpt", "value": "no"}]
    records.append({"id": "two", "image": ["0.png", "4.png"], "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    random_run(folder)
    return folder


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Asked]:
    """The file's questions as a task of lmms-eval gives them: words and opened pictures apart."""
    return [asked_of(record, folder) for record in json.loads((folder / "data.json").read_text())]


@pytest.fixture(scope="module")
def asker(folder: Path) -> Asker:
    return Asker(Opening(str(folder / "runs" / "tiny"), "cpu", 5))


def asked_of(record: dict[str, Any], folder: Path) -> Asked:
    names = record.get("image") or []
    names = [names] if isinstance(names, str) else names
    text = record["conversations"][0]["value"].replace("<image>", "").strip()
    return Asked(f"task t, question {record['id']}", text, lambda: [Image.open(folder / "images" / n) for n in names])


def test_answers_are_those_of_eval(folder: Path, asker: Asker, questions: list[Asked], tmp_path: Path) -> None:
    run = folder / "runs" / "tiny"
    result = evaluate_run(
        run, folder / "data.json", image_dir=folder / "images", batch_size=5, max_new_tokens=TOKENS,
        out=tmp_path / "p.jsonl", controls=0, console=quiet(),
    )  # fmt: skip
    expected = [prediction.prediction for prediction in result.predictions]
    assert asker.answers(questions, [Generation(TOKENS)] * 12) == expected
    assert len(set(expected)) >= 6  # a wrong picture, fit or template would show


def test_each_task_has_its_own_length_and_end(
    asker: Asker, questions: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = asker.answers(questions, [Generation(TOKENS)] * 12)
    word = next(word for text in whole for word in text.split()[1:])
    wanted = [Generation(TOKENS, (word,), "note: a"), Generation(2, (), "note: b")] * 6
    found = asker.answers(questions, wanted)
    for n, text in enumerate(whole):
        assert found[n] == (" ".join(text.split()[:2]) if n % 2 else text.split(word)[0].rstrip())
    said = capsys.readouterr().err
    assert said.count("note: a\n") == 1 and said.count("note: b\n") == 1
    assert "of 12 answers were cut at the most tokens that the task allows" in said


def test_likelihoods_are_those_of_a_naive_computation(folder: Path, asker: Asker, questions: list[Asked]) -> None:
    loaded, bundle = load_trained(folder / "runs" / "tiny", torch.device("cpu"))
    naive = Naive(loaded, bundle.recipe, chat_format(bundle.recipe, loaded.frontend), loaded.tokenizer.eos_token)
    pairs = [(asked, option) for asked in questions for option in ("red", " it is blue", "two two two two")]
    found = asker.likelihoods([asked for asked, _ in pairs], [option for _, option in pairs])
    for (asked, option), one in zip(pairs, found, strict=True):
        images = [ImageRef.of_file(image.filename) for image in asked.visuals()]  # type: ignore[attr-defined]
        loss, likeliest = naive.loss(asked.text, images, option.strip())
        assert one.loss == pytest.approx(loss, rel=1e-5) and one.likeliest == likeliest


def test_an_answer_is_the_likeliest_where_the_model_gives_it(trained: Path) -> None:
    """The run of this test ends its answers."""
    folder = trained.parent.parent
    asked = [asked_of(record, folder) for record in json.loads((folder / "data.json").read_text())[:4]]
    asker = Asker(Opening(str(trained), "cpu", 4))
    answers = asker.answers(asked, [Generation(8)] * 4)
    assert all(one.likeliest for one in asker.likelihoods(asked, answers))
    assert not any(one.likeliest for one in asker.likelihoods(asked, [f"{answer} red" for answer in answers]))


def test_pictures_are_read_again_only_when_their_question_is_asked(asker: Asker, questions: list[Asked]) -> None:
    """A task with more pictures than fit into memory."""
    looks: list[str] = []

    def counted(one: Asked) -> Asked:
        return Asked(one.place, one.text, lambda: looks.append(one.place) or one.visuals())  # type: ignore[func-returns-value]

    asker.answers([counted(one) for one in questions], [Generation(1)] * 12)
    places = [one.place for one in questions]
    assert looks[:12] == places and sorted(looks[12:]) == sorted(places)


@pytest.mark.parametrize(
    ("text", "option", "says"),
    [
        ("what <image> is it ?", "red", "task t, question 1: its questions have 1 <image> but it has no image"),
        ("what is it ?", " ", "task t, question 1: it has no answer"),
        ("red " * 600, "red", r"task t, question 1: its question has 6\d\d tokens.*this model reads 512"),
        ("red", "red " * 600, r"question 1: its question with the answer has 6\d\d tokens.*this model reads 512"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(asker: Asker, text: str, option: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        asker.likelihoods([Asked("task t, question 1", text, lambda: None)], [option])


def test_long_answers_end_where_the_model_does(asker: Asker, capsys: pytest.CaptureFixture[str]) -> None:
    asker.answers([Asked("t", "red " * 500, list)], [Generation(4096)])
    assert "tokens at most, not 4,096: this model reads 512 in all" in capsys.readouterr().err


def test_what_cannot_be_opened_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder / "runs" / "tiny"
    with pytest.raises(UserError, match=r"there is no folder .*/tinny; did you mean .*/tiny\?"):
        Asker(Opening(str(run.with_name("tinny")), "cpu", 1))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"an export\?\).*--model llava_hf --model_args pretrained={tmp_path}"):
        Asker(Opening(str(tmp_path), "cpu", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device is cuda, but torch sees no GPU"):
        Asker(Opening(str(run), "cuda", 1))
    with pytest.raises(UserError, match=r"--device is 'cuda:0', which is none of auto, cpu, cuda; did you mean cuda\?"):
        Asker(Opening(str(run), "cuda:0", 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"one of 2 processes.*without `accelerate launch`"):
        Asker(Opening(str(run), "cpu", 1))


def test_too_little_memory_names_the_option(
    asker: Asker, questions: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(asker_module, "answer", full)
    with pytest.raises(UserError, match="out of memory with 5 questions at once; lower --batch_size"):
        asker.answers(questions, [Generation(1)] * 12)
