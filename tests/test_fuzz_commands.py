"""The commands, given odd files and odd words: they work, or there is one short error, and nothing else is touched.

A plain run tries some 700 inputs here; ``-m soak`` twenty times as many.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from basic_lite.cli import app, main
from basic_lite.commands.common import with_home
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.model.hub import hub_is_away
from basic_lite.recipe import load_recipe
from basic_lite.recipe.sequence import load_sequence
from basic_lite.scoring.prediction import Prediction
from basic_lite.scoring.questions import check_pictures
from basic_lite.tools.asked import File, read_asked
from basic_lite.tools.doctor.probe import without_names
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.inspect.command import inspect
from basic_lite.tools.predictions import free_place, write_predictions
from basic_lite.training.answer_file import answers_kept, part_of
from basic_lite.training.bundle_files import open_bundle, require_checkpoint
from basic_lite.training.files import sha256
from tests.support import benchmarks
from tests.support.checkpoints import Restoring
from tests.support.fuzzing import ANY, EDIT, ODD, PARTS, UNFIT, edited, json_bytes, require_good, tried
from tests.support.maps import drawn_maps
from tests.support.models import write_llava
from tests.support.runs import quiet, run, tiny_recipe

# The shares of some 700 inputs.
BENCHMARKS, WORDS, SEQUENCES, MODELS, COMPARED, RUNS, CHECKED, CHECKPOINTS, ANSWERS, DOCTOR = (
    200, 100, 60, 60, 40, 50, 30, 60, 40, 50,
)  # fmt: skip
parts = pytest.mark.parametrize("part", PARTS)


SHARE = {"n": 4, "right": 2, "share": 0.5, "interval_95": [0.15, 0.85]}
GAIN = [0.1, 0.05, 0.15]
# What a run of two steps without held-out data doesn't log.
LOGGED = [
    {"step": 2, "refinement": {"places": ["v", "h1", "target"], "own": [0.1, 0.2, 0.3], "control": [0.1, 0.1, 0.1],
                               "samples": 16, "patches": 64, "gains": [GAIN, GAIN], "health": None}},
    {"step": 2, "gate": {"open": True, "verdict": "holds", "gain": GAIN, "samples": 16, "plan": None}},
    {"step": 2, "answers": [{"picture": "0.png", "question": "q", "answer": "a", "reference": "a", "number": 1}]},
    {"step": 2, "eval_loss": 2.0, "eval_score": 0.5, "generated": {
        "metric": "exact", "score": SHARE, "scores": [1.0, 0.0, 1.0, 0.0],
        "controls": {"questions": 4, "of": 4, "own_picture": SHARE, "other_picture": SHARE,
                     "gain_over_other_picture": {"value": 0.0, "low": -0.1, "high": 0.1}}}},
    {"step": 2, "time": {"step_s": 1.0, "parts_s": {"tower": 0.25, "backward": 0.75}}},
    {"step": 2, "time": {"whole_s": 4.0, "saving_s": 1.0}},
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, models, and a finished run with its checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    run(folder, {"name": "a", "training.max_steps": 2})
    write_llava(folder / "llava")
    return folder


def command(*words: str) -> int:
    """Run a command here; what it prints is fit to print, and an error is a good one."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as ended:
        code = ended.code
    assert not UNFIT.search(out.getvalue() + err.getvalue())
    if code == 2:
        require_good(err.getvalue().split("error: ", 1)[1])
    assert code in (0, 1, 2), code
    return int(code)


def changed(value: Any, draw: st.DrawFn) -> Any:
    """A value of JSON with one of the values in it exchanged, removed, or given twice."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        at = draw(st.sampled_from(keys))
        new = value.copy()
        if draw(st.integers(0, 9)) == 0:
            del new[at]
        else:
            new[at] = changed(value[at], draw)
        return new
    return draw(ANY)


@st.composite
def odd_forms(draw: st.DrawFn, *wholes: Any) -> Any:
    return changed(draw(st.sampled_from(wholes)), draw)


FORMS = {
    "v2_OpenEnded_mscoco_val2014_questions.json": benchmarks.VQA_QUESTIONS,
    "v2_mscoco_val2014_annotations.json": benchmarks.VQA_ANNOTATIONS,
    "textvqa.json": benchmarks.TEXTVQA,
    "gqa.json": benchmarks.GQA,
    "coco_pope_random.json": benchmarks.POPE,
    "problems.json": benchmarks.SCIENCEQA,
    "chartqa.json": benchmarks.CHARTQA,
    "docvqa.json": benchmarks.DOCVQA,
}


@parts
def test_benchmark_files(part: int, tmp_path: Path) -> None:
    for name, whole in FORMS.items():
        (tmp_path / name).write_bytes(json_bytes(whole))
    table = benchmarks.mmbench(tmp_path)
    rows = table.read_bytes()

    def ask(path: Path) -> None:
        questions = read_asked(File(path), None).questions
        with contextlib.suppress(UserError):  # there are no pictures here
            check_pictures([one.record for one in questions])
        lines = [Prediction(n, one.record.id, one.record.question_type or "", [i.name for i in one.record.images], "",
                            "", "", None, references=list(one.answers), groups=list(one.groups), circle=one.circle)
                 for n, one in enumerate(questions)]  # fmt: skip
        write_predictions(lines, {}, tmp_path / "out.jsonl")

    def act(given: tuple[str, Any, tuple[int, int, bytes]]) -> None:
        name, value, edit = given
        if name == table.name:
            table.write_bytes(edited(rows, edit))
            ask(table)
            return
        (tmp_path / name).write_bytes(json_bytes(value))
        try:
            ask(tmp_path / (name if "annotations" not in name else next(iter(FORMS))))
        finally:
            (tmp_path / name).write_bytes(json_bytes(FORMS[name]))

    forms = [st.tuples(st.just(name), odd_forms(whole), EDIT) for name, whole in FORMS.items()]
    tried(st.one_of(*forms, st.tuples(st.just(table.name), st.none(), EDIT)), BENCHMARKS, act, tmp_path, part)


@parts
def test_words_of_command_lines(part: int, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is there, and `clean` is left out: with --yes it would do what it is told, wherever that is."""
    hub_is_away()  # a model's name may ask the hub; that is done once
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "a"}]')
    names = st.sampled_from(["data", "check", "keys", "runs", "report", "compare", "inspect", "chat", "eval",
                             "export", "train", "estimate", "run", "text-probe", "nothing"])  # fmt: skip
    options = ["--out", "--data", "--group", "--limit", "--gpu", "--dry-run", "--overwrite", "--port", "--web",
               "--benchmark", "--metric", "--recipe", "--resume", "--checkpoint", "--export", "--samples", "-q", "--",
               "--controls", "--annotations", "--image-dir", "--json", "--device", "--temperature", "--maps",
               "--layers"]  # fmt: skip
    odd = ["nan", "1e999", "-1", "0", "9" * 4400, "\0", "\ud800", "\x1b[31m", "a" * 5000, "~", "..", "", "a.json",
           "x=y", "training.epochs=nan", "1:seed=2", "9" * 5000 + ":seed=2", "a=b,c",
           "http://a/b", "A/B", "[/b]"]  # fmt: skip
    words = st.lists(st.sampled_from(options) | st.sampled_from(odd) | st.text(max_size=8), max_size=5)
    tried(st.tuples(names, words), WORDS, lambda given: command(given[0], *given[1]), tmp_path, part)  # type: ignore[arg-type]


@parts
def test_several_recipes(part: int, tmp_path: Path, made: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("name: b\nstage: 1\nmodel: {vision: v, llm: l}\ndata: {train: {path: a.json}}\n")
    word = st.sampled_from([str(path), "demo_stage1", "demo_stage2", "1:seed=2", "2:name=c", "name=c", "\0=1", "\ud800",
                            "9" * 5000 + ":seed=2", "0:seed=2", "output=" + "x" * 300, "model.start=x"])  # fmt: skip
    words = st.lists(word | st.text(max_size=6), max_size=5)
    tried(words, SEQUENCES, lambda given: load_sequence(given, lambda text: None), tmp_path, part)


@parts
def test_folders_of_models(part: int, tmp_path: Path, made: Path) -> None:
    shutil.copytree(made / "llm", tmp_path / "llm")
    shutil.copytree(made / "vision", tmp_path / "vision")
    shutil.copytree(made / "llava", tmp_path / "llava")
    names = ["llm/config.json", "llm/tokenizer_config.json", "vision/config.json", "vision/preprocessor_config.json",
             "llava/config.json", "llm/tokenizer.json"]  # fmt: skip
    wholes = {name: (tmp_path / name).read_bytes() for name in names}
    model = tiny_recipe(tmp_path).model

    def act(given: tuple[str, Any, bool, tuple[int, int, bytes]]) -> None:
        name, value, cut, edit = given
        (tmp_path / name).write_bytes(edited(wholes[name], edit) if cut else json_bytes(value))
        try:
            if name.startswith("llava"):
                inspect(str(tmp_path / "llava"), console=quiet())
            else:
                load_frontend(model)
        finally:
            (tmp_path / name).write_bytes(wholes[name])

    forms = [st.tuples(st.just(name), odd_forms(json.loads(whole)), st.booleans(), EDIT)
             for name, whole in wholes.items()]  # fmt: skip
    tried(st.one_of(*forms), MODELS, act, tmp_path, part, [str(tmp_path)])


@parts
def test_predictions_that_are_compared(part: int, tmp_path: Path, made: Path) -> None:
    rows = [Prediction(n, str(n), "t", [f"{n}.png"], f"q {n}?", "red", "red", True, score=1.0) for n in range(3)]
    for side in "ab":
        (tmp_path / side).mkdir()
        write_predictions(rows, {"settings": {"data": "d"}, "metric": "exact"}, tmp_path / side / "predictions_d.jsonl")
    names = ["b/predictions_d.jsonl", "b/predictions_d.summary.json"]
    wholes = {name: (tmp_path / name).read_bytes() for name in names}
    lines = wholes[names[0]].splitlines()

    def act(given: tuple[bool, Any, bool, tuple[int, int, bytes]]) -> None:
        summary, value, cut, edit = given
        for name, data in wholes.items():
            (tmp_path / name).write_bytes(data)
        name = names[summary]
        new = json_bytes(value) if summary else b"\n".join([json_bytes(value), *lines[1:], b""])
        (tmp_path / name).write_bytes(edited(wholes[name], edit) if cut else new)
        command("compare", str(tmp_path / "a"), str(tmp_path / "b"))

    forms = [st.tuples(st.just(bool(n)), odd_forms(json.loads(one)), st.booleans(), EDIT)
             for n, one in enumerate([lines[0], wholes[names[1]]])]  # fmt: skip
    tried(st.one_of(*forms), COMPARED, act, tmp_path, part)


@parts
def test_run_folders(part: int, tmp_path: Path, made: Path) -> None:
    """A folder whose files were changed is listed, reported and cleaned."""
    folder = tmp_path / "runs" / "a"
    shutil.copytree(made / "runs" / "a", folder)
    log = [*(folder / "log.jsonl").read_bytes().splitlines(), *map(json_bytes, LOGGED)]
    (folder / "log.jsonl").write_bytes(b"\n".join([*log, b""]))
    shutil.copytree(folder / "final", folder / "best")
    manifest = json.loads((folder / "final" / "manifest.json").read_text())
    best = manifest | {"best": {"by": "loss", "value": 0.5}}
    (folder / "best" / "manifest.json").write_text(json.dumps(best))
    maps = {"step": 2, "held_out": True, "pictures": [drawn_maps(2, ["dog", "sky"]).to_dict()]}
    (folder / "maps.json").write_text(json.dumps(maps))
    change = {"n": 2, "before": 0.5, "after": 0.6, "difference": [0.1, -0.1, 0.3]}
    kinds = [{"of": "texts", "name": "prose", "n": 2, "before": 0.5, "after": 0.6}]
    outcome = {"bits": change, "right": change, "kinds": kinds, "left_out": 0}
    probed = {"model_sha256": sha256(folder / "final" / "manifest.json"), "text_probe": outcome}
    (folder / "text_probe_final.json").write_text(json.dumps(probed))
    command("report", str(folder))
    page = (folder / "report.html").read_text()
    assert "damaged and left out" not in page and "BASIC's premise" in page and "Held-out score" in page
    assert "What the visual tokens say" in page and "Best step" in page and "own ability with text" in page
    names = ["data.json", "parts.json", "final/manifest.json", "final/recipe.json", "maps.json", "best/manifest.json",
             "text_probe_final.json"]  # fmt: skip
    wholes = {name: (folder / name).read_bytes() for name in ["log.jsonl", "recipe.yaml", *names]}
    # Outside what may be written to.
    victim = tmp_path.parent / f"{tmp_path.name}-victim"
    victim.write_text("precious")
    links = ["report.html", "report.html.part", "log.jsonl.part", "parts.json.part", ".lock", "kept-1", "final.part",
             "tensorboard", "checkpoint-9", "best.old", "predictions_x.jsonl",
             "predictions_x.summary.json"]  # fmt: skip

    def act(given: tuple[str, Any, bool, tuple[int, int, bytes]]) -> None:
        name, value, cut, edit = given
        if name in links:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(victim if cut else victim.with_name("nothing"))
            try:
                command("runs", str(folder.parent))
                command("report", str(folder))
                command("clean", str(folder))
            finally:
                (folder / name).unlink(missing_ok=True)
            assert victim.read_text() == "precious" and not victim.with_name("nothing").exists()
            return
        new = b"\n".join([json_bytes(value), *log, b""]) if name == "log.jsonl" else json_bytes(value)
        (folder / name).write_bytes(edited(wholes[name], edit) if cut else new)
        try:
            command("runs", str(folder.parent))
            command("report", str(folder))
            command("clean", str(folder))
        finally:
            (folder / name).write_bytes(wholes[name])

    forms = [st.tuples(st.just(name), odd_forms(json.loads(wholes[name])), st.booleans(), EDIT) for name in names]
    forms += [st.tuples(st.just("log.jsonl"), odd_forms(*map(json.loads, log)), st.booleans(), EDIT)]
    forms += [st.tuples(st.just("recipe.yaml"), ANY, st.just(True), EDIT)]
    forms += [st.tuples(st.sampled_from(links), st.none(), st.booleans(), EDIT)] * 2
    tried(st.one_of(*forms), RUNS, act, tmp_path, part)


@parts
def test_data_that_is_checked(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    good = {"id": 1, "image": "0.png", "question": "q", "answer": "a"}

    def act(rows: list[Any]) -> None:
        (tmp_path / "a.json").write_bytes(json_bytes(rows))
        command("check", "a.json", "--out", "a_check.html")
        command("data", "a.json", "--out", "a.yaml", "--overwrite")

    tried(st.lists(odd_forms(good) | st.just(good), min_size=1, max_size=3), CHECKED, act, tmp_path, part)


@parts
def test_checkpoints(part: int, tmp_path: Path, made: Path) -> None:
    """Training states of others with the right hashes: refused as a whole, or a step follows at the recipe's rates."""
    checkpoint = sorted((made / "runs" / "a").glob("checkpoint-*"))[-1]
    folder = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ["training.json", "optimizer.safetensors", "generators.safetensors"]
    wholes = {name: (folder / name).read_bytes() for name in names}
    state = json.loads(wholes["training.json"])
    restoring = Restoring(made, {"training.max_steps": 2})
    rates = restoring(folder).rates()

    def act(given: tuple[str, Any, bool, tuple[int, int, bytes]]) -> None:
        name, value, cut, edit = given
        for one, data in wholes.items():
            (folder / one).write_bytes(data)
        changed_bytes = edited(wholes[name], edit)
        (folder / name).write_bytes(changed_bytes if cut or name != "training.json" else json_bytes(value))
        manifest["files"][name] = {"sha256": sha256(folder / name), "bytes": 0}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        require_checkpoint(open_bundle(folder))
        step = restoring(folder)
        assert step.rates() == rates
        for parameter in step.trainable:
            parameter.grad = torch.ones_like(parameter)
        step.update()
        assert all(bool(torch.isfinite(parameter).all()) for parameter in step.trainable)

    forms = st.tuples(st.sampled_from(["training.json", *names]), odd_forms(state), st.booleans(), EDIT)
    tried(forms, CHECKPOINTS, act, tmp_path, part, [str(folder)])


@parts
def test_answers_that_are_there_already(part: int, tmp_path: Path) -> None:
    """What lies where an evaluation wants to write is taken, or left as it is."""
    wanted = tmp_path / "p.jsonl"

    def act(given: tuple[str, Any, bytes]) -> None:
        name, value, tail = given
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / name).write_bytes(json_bytes(value) + tail)
        found = free_place(wanted, {"model_sha256": "m"})
        assert found.parent == tmp_path and (found != wanted or name.endswith(".part"))

    def go_on(lines: list[Any]) -> None:
        """Answers of the same settings, so that their lines are read."""
        place = part_of(wanted)
        place.write_bytes(b"\n".join(map(json_bytes, [{"settings": {}}, good, *lines])) + b"\n")
        with answers_kept(wanted, {}) as kept:
            assert kept.text("own picture", 0) == "a"
            assert {type(value) for key in kept.found for value in key} == {str, int}

    def either(given: Any) -> None:
        go_on(given) if isinstance(given, list) else act(given)

    good = {"shown": "own picture", "at": 0, "answer": "a", "cut": False}
    names = st.sampled_from(["p.jsonl", "p.summary.json", "p.jsonl.part"])
    lines = st.lists(odd_forms(good | {"at": 1}), min_size=1, max_size=3)
    tried(st.tuples(names, ANY, st.binary(max_size=5)) | lines, ANSWERS, either, tmp_path, part)


@parts
def test_what_the_doctor_is_told(part: int, tmp_path: Path) -> None:
    def act(text: Any) -> None:
        said = without_names(str(text))
        assert not UNFIT.search(said) and "\n" not in said and len(said) <= 300

    tried(ODD.filter(lambda one: one != 10**400) | st.text(), DOCTOR, act, tmp_path, part)


def test_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell reads `~` in `--out=~/x`, so every command does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = with_home(lambda **given: given)(a=Path("~/a"), b=[Path("~/b"), Path("c")], c="~/c", d=None)
    assert given == {"a": tmp_path / "a", "b": [tmp_path / "b", Path("c")], "c": "~/c", "d": None}
    for one in app.registered_commands:
        assert one.callback is not None and one.callback.__code__ is with_home(print).__code__, one.name
    assert command("runs", "~") == 0
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_recipe("~/nothing.yaml")


def test_the_questions_may_not_be_overwritten(tmp_path: Path, made: Path) -> None:
    questions = tmp_path / "q.json"
    shutil.copy(made / "data.json", questions)
    before = questions.read_bytes()
    with pytest.raises(UserError, match="holds no predictions"):
        evaluate_run(made / "runs" / "a", questions, image_dir=made / "images", out=questions, console=quiet())
    assert questions.read_bytes() == before
