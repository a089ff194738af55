"""lmms-eval itself evaluates a run: the tasks of docs/EVAL.md and a benchmark of its own, with the demo's pictures."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from basic_lite.data.images import ImageRef
from basic_lite.demo import ASSETS
from basic_lite.demo.place import Place
from basic_lite.demo.world import write_world
from basic_lite.errors import UserError
from basic_lite.run import train
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.training.answer import chat_format
from basic_lite.training.bundle import load_trained
from tests.support.likelihood import Naive
from tests.support.runs import quiet

pytest.importorskip("lmms_eval", reason='lmms-eval is in the extra [eval]: pip install -e ".[test,eval]"')
pytestmark = pytest.mark.real

DOCS = Path(__file__).parents[2] / "docs"
RUN = Path("runs") / "7b_qlora"
SMALL = {"train_scenes": 200, "captions": 60, "questions": 480, "held_out_scenes": 40, "eval_captions": 2}
QUESTIONS, STEPS = 36, 60
# What lmms-eval's POPE adds to a question.
SHORT = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as docs/EVAL.md has it: a run, half trained in the demo's world, and tasks of held-out questions."""
    folder = tmp_path_factory.mktemp("lmms")
    world = write_world(folder / "world", eval_questions=QUESTIONS, **SMALL)
    recipe = Place(folder, ASSETS, world, 0).recipe(
        2, folder / "runs", name=RUN.name, model__projector=None, training__max_steps=STEPS, data__workers=0,
        supervision__enabled=False,
    )  # fmt: skip
    train(recipe, console=quiet())
    task = folder / "my_task"
    shutil.copytree(DOCS / "lmms_eval", task)
    shutil.copytree(world.images, task / "images")
    records = json.loads(world.eval.read_text())
    answers: dict[str, set[str]] = {}
    for record in records:
        answers.setdefault(record["question_type"], set()).add(record["conversations"][1]["value"])
        record["image"] = f"images/{record['image']}"
    for record in records:
        record["options"] = sorted(answers[record["question_type"]])
    (task / "questions.json").write_text(json.dumps(records))
    write_pope(task, [record for record in records if record["conversations"][1]["value"] in ("yes", "no")])
    return folder


def write_pope(task: Path, records: list[dict[str, Any]]) -> None:
    """lmms-eval's own POPE on other data: a parquet file with the pictures in it, as the hub has them."""
    import datasets

    asked = [record["conversations"][0]["value"].removeprefix("<image>\n") for record in records]
    rows = {
        "question_id": [record["id"] for record in records],
        "question": asked,
        "answer": [record["conversations"][1]["value"] for record in records],
        "image": [str(task / record["image"]) for record in records],
    }
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.to_parquet(str(task / "pope.parquet"))
    import lmms_eval

    pope = Path(str(lmms_eval.__file__)).parent / "tasks" / "pope" / "pope.yaml"
    lines = [f"include: {pope}", "task: own_pope", "dataset_path: parquet", "dataset_kwargs:"]
    (task / "own_pope.yaml").write_text("\n".join([*lines, f"  data_files: {{test: {task / 'pope.parquet'}}}", ""]))
    turned = [
        {**record, "conversations": [{"from": "human", "value": f"<image>\n{text}{SHORT}"}, record["conversations"][1]]}
        for record, text in zip(records, asked, strict=True)
    ]
    (task / "pope.json").write_text(json.dumps(turned))


def command(task: str) -> list[str]:
    """The command of docs/EVAL.md for a task."""
    lines = re.findall(r"^python (-m lmms_eval .*)$", (DOCS / "EVAL.md").read_text(encoding="utf-8"), re.MULTILINE)
    (line,) = [line for line in lines if f"--tasks {task} " in line]
    return shlex.split(line)


@pytest.fixture(scope="module")
def evaluated(place: Path) -> Path:
    """What lmms-eval has written: the document's command, with three tasks, and on the CPU as eval is asked to."""
    words = command("questions")
    assert [word.replace("options", "questions") for word in command("options")] == words
    words[words.index("questions")] = "questions,options,own_pope"
    more = ["--device", "cpu", "--output_path", "results", "--log_samples"]
    done = subprocess.run([sys.executable, *words, *more], cwd=place, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-3000:] + done.stderr[-6000:]
    assert f"evaluating {RUN}" in done.stderr and "device: CPU" in done.stderr
    return place / "results"


def scores(results: Path, task: str) -> dict[str, float]:
    (file,) = results.rglob("*_results.json")
    return {name.split(",")[0]: value for name, value in json.loads(file.read_text())["results"][task].items()}


def samples(results: Path, task: str) -> list[dict[str, Any]]:
    (file,) = results.rglob(f"*samples_{task}.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def ours(place: Path, name: str, most: int) -> list[Prediction]:
    """What `basic-lite eval` says of a file."""
    result = evaluate_run(
        place / RUN, place / "my_task" / name, max_new_tokens=most, batch_size=16, controls=0, device="cpu",
        out=place / f"{name}.jsonl", console=quiet(),
    )  # fmt: skip
    return result.predictions


def test_answers_and_score_are_those_of_eval(place: Path, evaluated: Path) -> None:
    expected = ours(place, "questions.json", 16)
    answers = [sample["filtered_resps"] for sample in samples(evaluated, "questions")]
    assert answers == [one.prediction for one in expected] and len(set(answers)) >= 6
    right = sum(bool(one.correct) for one in expected)
    assert 0 < right < QUESTIONS and scores(evaluated, "questions")["exact_match"] == pytest.approx(right / QUESTIONS)


def test_the_likeliest_options_are_those_of_a_naive_computation(place: Path, evaluated: Path) -> None:
    loaded, bundle = load_trained(place / RUN, torch.device("cpu"))
    chat = chat_format(bundle.recipe, loaded.frontend)
    (stop,) = set(chat.stop_token_ids) - {loaded.tokenizer.eos_token_id} or {loaded.tokenizer.eos_token_id}
    naive, right = Naive(loaded, bundle.recipe, chat, loaded.tokenizer.decode([stop])), 0
    found = samples(evaluated, "options")
    for record, sample in zip(json.loads((place / "my_task" / "questions.json").read_text()), found, strict=True):
        images = [ImageRef.of_file(place / "my_task" / record["image"])]
        question = record["conversations"][0]["value"].removeprefix("<image>\n")
        losses = [naive.loss(question, images, option)[0] for option in record["options"]]
        assert [float(loss) for loss, _ in sample["filtered_resps"]] == pytest.approx(losses, rel=1e-4)
        likeliest = record["options"][losses.index(min(losses))]
        right += likeliest == record["conversations"][1]["value"]
    assert 0 < right < QUESTIONS and scores(evaluated, "options")["acc"] == pytest.approx(right / QUESTIONS)


def test_a_benchmark_of_lmms_eval_scores_the_same_answers(place: Path, evaluated: Path) -> None:
    expected = ours(place, "pope.json", 128)
    answers = [sample["filtered_resps"] for sample in samples(evaluated, "own_pope")]
    assert answers == [one.prediction for one in expected] and len(answers) >= 8
    share = sum(bool(one.correct) for one in expected) / len(expected)
    assert scores(evaluated, "own_pope")["pope_accuracy"] == pytest.approx(share)


def test_an_error_that_can_be_mended_ends_lmms_eval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made from the command line the model leaves with one sentence; a Python program gets the exception."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    basic_lite = get_model("basic_lite")
    unsaid = {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    for given, says in (("run=runs/nowhere", "there is no folder"), ("runs/x", "give it as run=runs/NAME")):
        with pytest.raises(SystemExit) as stopped:
            basic_lite.create_from_arg_string(given, unsaid)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith("error: ") and says in said and said.count("\n") == 1
    with pytest.raises(UserError, match="there is no folder"):
        basic_lite("runs/nowhere", "cpu")

    def request(kind: Any, arguments: tuple[Any, ...]) -> Instance:
        return Instance(kind, arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})

    drawn = ("what ?", {"temperature": 0.7}, None, 0, "t", "test")
    refused = [
        ("generate_until", drawn, "its answers are drawn"),
        ("generate_until", ("what ?", {"until": []}, lambda doc: ["x.mp4"], 0, "t", "test"), "it shows a video"),
        (
            "generate_until",
            ("what ?", {"until": []}, lambda doc: [Image.open("x.png")], 0, "t", "test"),
            "No such file",
        ),
        ("generate_until_multi_round", drawn, "task t asks in several rounds"),
        ("generate_visual_cot", drawn, "task t wants pictures drawn"),
        ("loglikelihood", ("", "red"), "task t has the metric acc_mutual_info"),
    ]
    typed = basic_lite.create_from_arg_string(f"run={place / RUN}", unsaid)
    programmed = basic_lite(place / RUN, "cpu")
    for model in (typed, programmed):
        model.task_dict["t"] = {"test": [{}]}
    for kind, arguments, says in refused:
        with pytest.raises(UserError, match=says):
            getattr(programmed, kind)([request(kind, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            getattr(typed, kind)([request(kind, arguments)])
        assert stopped.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(UserError, match="a run is always asked in its own template"):
        _ = programmed.chat_template
    programmed.clean()
    with pytest.raises(UserError, match="has given its memory back"):
        programmed.generate_until([request("generate_until", ("what ?", {}, None, 0, "t", "test"))])
