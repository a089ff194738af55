"""`basic-lite data`: what it says, and a recipe that loads whatever the data is called."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from basic_lite.cli import main
from basic_lite.console import command_line
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.recipe.yaml import read_document
from basic_lite.tools.data.command import _meaning, data, fitted_epochs
from basic_lite.tools.data.look import CAPTION_PROMPTS, Found
from basic_lite.tools.data.write import head_of, legal_name, recipe_text
from tests.support.data import write_image
from tests.support.rights import small_disk
from tests.support.runs import tiny_recipe

DEMO = "demo_photos"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photos(folder: Path | str, count: int = 3, texts: bool = False) -> Path:
    folder = Path(folder)
    for n in range(count):
        write_image(folder / f"p{n}.png", seed=n)
        if texts:
            (folder / f"p{n}.txt").write_text(f"a long caption number {n}", encoding="utf-8")
    if not texts:
        rows = "".join(f'p{n}.png,"a long caption, number {n}"\n' for n in range(count))
        (folder / "captions.csv").write_text("image,caption\n" + rows, encoding="utf-8")
    return folder


BASE = "demo_stage2"  # a recipe without a question of its own


def run(path: Path | str, *overrides: str, base: str = DEMO, width: int = 80, **keys: Any) -> tuple[Path, str]:
    """The recipe that was written, and what was said."""
    console = Console(file=io.StringIO(), width=width, force_terminal=width < 80, highlight=False, color_system=None)
    written = data(Path(path), base=base, overrides=overrides, console=console, **keys)
    return written, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_folder_with_a_table() -> None:
    photos("photos")
    write_image(Path("photos/p1.png")).write_bytes(b"no picture")
    written, said = run("photos", "training.global_batch=2", "training.micro_batch=1")
    for words in (
        "pictures with a text each, in the table photos/captions.csv",
        "image is 'image', text is 'caption'",
        "2 of 3 can be used, with 2 pictures that open",
        "1 can't be used, 1 because of a picture:",
        "photos/captions.csv, line 3: image 'p1.png' can't be decoded",
        "user :<image>×36",
        "training is 30 steps of 2 samples, 30 passes over 2 records",
        "`train` won't start until",
        "basic-lite train photos.yaml\n",
        'basic-lite chat runs/photos photos/p0.png "describe the image."',
    ):
        assert words in said, said
    lines = written.read_text(encoding="utf-8").splitlines()
    assert (str(written), lines[0]) == ("photos.yaml", "# basic-lite train photos.yaml")
    assert "  projector_learning_rate: 1.0e-2  # it starts fresh" in lines
    recipe = load_recipe(written)
    assert recipe.data.train.path == "photos/captions.csv"  # type: ignore[union-attr]
    assert recipe.training.global_batch == 2
    base = load_recipe(DEMO, ["name=photos", "training.global_batch=2", "training.micro_batch=1"])
    same = {"train": base.data.train}
    assert recipe == base.model_copy(update={"data": recipe.data, "training": base.training})
    assert recipe.data.model_copy(update=same) == base.data
    record = load_records(recipe.data.train, root=Path.cwd())[0]
    assert record.turns[0].text == base.data.train.prompt == "describe the image."  # type: ignore[union-attr]


def test_texts_that_will_be_cut_are_told() -> None:
    photos("p")
    assert "cut off" not in run("p", width=1000)[1]
    Path("p/captions.csv").write_text(f"image,caption\np0.png,{'a red circle ' * 60}\np1.png,a red circle\n")
    said = run("p", width=1000, overwrite=True)[1]
    assert "note: 1 record is longer than data.max_length=128, so the end of the text is cut off (" in said


def test_problems_that_are_alike_share_a_line() -> None:
    photos("p", 40)
    lines = Path("p/captions.csv").read_text(encoding="utf-8").splitlines()
    lines[1:31] = [f"p{n}.png," for n in range(30)]  # no caption
    Path("p/captions.csv").write_text("\n".join(lines), encoding="utf-8")
    for n in (30, 31):  # each picture is named
        Path(f"p/p{n}.png").write_bytes(b"x")
    said = run("p", width=1000)[1]
    assert all(f"  p/captions.csv, line {n + 2}: image 'p{n}.png' can't be decoded" in said for n in (30, 31))
    assert "    and 29 more like it: p/captions.csv, line 3, p/captions.csv, line 4, …\n" in said


def test_what_a_run_will_warn_of_and_words_that_the_model_lacks() -> None:
    photos("p")
    said = run("p", width=1000)[1]
    assert "note: the run has 30 optimizer steps (3 samples, 8 a step): too few to teach" in said
    assert re.search(r"note: the model doesn't know \d+% of the words of the answers \(<unk> stands", said)
    Path("p/captions.csv").write_text("image,caption\np0.png,red circle\n")
    assert "30 passes over 1 record\n" in run("p", overwrite=True, width=1000)[1]
    said = run("p", "training.max_steps=50", overwrite=True, width=1000)[1]
    assert "too few" not in said and "doesn't know" not in said
    rows = [{"image": "p0.png", "question": "what is a zeppelin ?", "answer": "red circle"}]
    Path("p/asked.json").write_text(json.dumps(rows))
    said = run("p/asked.json", overwrite=True, width=1000)[1]
    assert "what is a <unk> ?" in " ".join(said.split()) and "of the words of the answers" not in said
    assert re.search(r"note: the model doesn't know \d+% of the words of the questions \(<unk> stands for them\)", said)
    Path("p/asked.json").write_text(json.dumps(rows).replace("zeppelin", "circle"))
    assert "doesn't know" not in run("p/asked.json", overwrite=True, width=1000)[1]


def test_what_leaves_bad_records_out_is_said_where_it_is_not_set() -> None:
    photos("p")
    Path("p/p1.png").unlink()
    assert "or type basic-lite train p.yaml data.bad_records=drop\n" in run("p", width=1000)[1]
    assert "won't start" not in run("p", "data.bad_records=drop", overwrite=True)[1]


NAMES = [
    "my photos", "it's", 'say "hi"', "ümläut", "#no: x", "a [1] {2}*", "yes", "1e3", "-x", "back\\slash",
    "new\nline", "~home", "%20", "C: drive", "..x", "a.b.", "${x}", "日本",
]  # fmt: skip


@pytest.mark.parametrize("texts", [False, True])
def test_whatever_it_is_called(texts: bool) -> None:
    for number, name in enumerate(NAMES):
        photos(name, 1, texts)
        out, models = Path(f"{number}.yaml"), ("model.base=/nowhere", "model.vision=null", "model.llm=null")
        written, said = run(name, *models, out=out)
        recipe = load_recipe(written)
        assert recipe.model.base == "/nowhere" and not {*recipe.name} & {*'/\\ <>:"|?*\n'}
        [record] = load_records(recipe.data.train, root=Path.cwd())
        assert record.answer and record.images[0].folder == str(Path(name).absolute())
        assert "its files can't be read: model.base: there is no folder /nowhere" in said
        assert "gpt: a long caption" in said


def test_paths_are_written_from_here(tmp_path: Path) -> None:
    photos("a/photos")
    run(tmp_path / "a" / "photos" / "captions.csv", out=Path("x.yaml"))
    assert load_recipe("x.yaml").data.train.path == "a/photos/captions.csv"  # type: ignore[union-attr]
    (tmp_path / "b").mkdir()
    assert load_recipe("x.yaml").name == "captions"


def test_the_folder_of_the_pictures_is_said(tmp_path: Path) -> None:
    """Whole paths in a list are read where they lead, so a person sees where that is; a recipe has the folder then."""
    far = photos(tmp_path / "elsewhere")
    rows = [{"image": str(far / f"p{n}.png"), "question": "q", "answer": "a"} for n in range(3)]
    Path("lists/a").mkdir(parents=True)
    Path("lists/a/list.json").write_text(json.dumps(rows))
    written, said = run("lists/a/list.json", width=300)
    assert f"\npictures: {far}\n" in said
    section = load_recipe(written).data.train
    assert not isinstance(section, list) and section.image_dir is not None
    assert os.path.abspath(section.image_dir) == str(far)
    assert "pictures: " not in run(photos("beside", texts=True), width=300)[1]


def test_columns_with_other_names() -> None:
    photos("bilder")
    Path("liste.csv").write_text("Bild;Wort;Jahr\np0.png;Hund;1999\np1.png;Katze;2001\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"\(Bild, Wort, Jahr\).*data.train.columns.answer=NAME"):
        run("liste.csv")
    written, said = run("liste.csv", "data.train.columns.image=Bild", "data.train.columns.answer=Wort", base=BASE)
    section = load_recipe(written).data.train
    assert section.image_dir == "bilder" and section.columns == {"image": "Bild", "answer": "Wort"}  # type: ignore[union-attr]
    assert "aren't used: 'Jahr'" in said and "What is this?" in said


def test_hints_about_columns_can_be_typed() -> None:
    photos("bilder")
    Path("l.csv").write_text("Mein Bild;Wort\np0.png;Hund\n", encoding="utf-8")
    both = 'as in "data.train.columns.image=Mein Bild" data.train.columns.answer=Wort.'
    with pytest.raises(UserError, match=both):
        run("l.csv")
    Path("q.csv").write_text("Mein Bild;question;answer\np0.png;what?;Hund\n", encoding="utf-8")
    said = run("q.csv", width=1000)[1]
    assert "note: none of them has a picture, so `train` won't start" in said
    assert 'to take another one: "data.train.columns.image=Mein Bild")' in said
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    rows = [{"image": "bilder/p0.png", "text": "x", "answer": "y", "question": "z", "conversations": turns}]
    mixed = [*rows, {"image": "bilder/p0.png", "text": "a text"}]
    Path("m.json").write_text(json.dumps(mixed))
    assert "aren't used: 'question' (" in run("m.json", width=1000)[1]
    better = [{"images": ["bilder/p0.png"], "image": "", "question": "q", "chosen": "a", "rejected": "b"}]
    Path("d.json").write_text(json.dumps(better))
    said = run("d.json", "data.train.columns.answer=chosen", width=1000)[1]
    assert "columns that aren't used: 'rejected'\n" in said


def test_a_json_file_whose_keys_say_nothing_gets_both_hints() -> None:
    source = SimpleNamespace(sources=[None])
    found = Found(source, "", {}, ("bild", "beschreibung"), False, ())  # type: ignore[arg-type]
    (line,) = _meaning(found)
    assert line.startswith("none of the columns 'bild', 'beschreibung' has a name that says which is the text; ")
    assert line.endswith("as in data.train.columns.image=bild data.train.columns.answer=beschreibung")
    (first, line) = _meaning(replace(found, columns={"image": "image"}, unused=("beschreibung",)))
    assert first == "columns: image is 'image'" and line.endswith("as in data.train.columns.answer=beschreibung")


def test_few_pictures_with_many_questions_hold_none_out() -> None:
    photos("p", 3)
    rows = [{"image": f"p{n % 3}.png", "question": f"what {n}?", "answer": "a dog"} for n in range(60)]
    Path("p/qa.json").write_text(json.dumps(rows))
    written, said = run("p/qa.json", width=1000)
    assert load_recipe(written).data.held_out is None
    assert "note: so many records share a picture" in said


def test_a_recipe_without_a_question_of_its_own_gets_some() -> None:
    photos("photos")
    written, said = run("photos", base=BASE, out=Path("asked.yaml"))
    source = load_recipe(written).data.train
    assert source.prompt == list(CAPTION_PROMPTS) and " | ".join(CAPTION_PROMPTS) in said  # type: ignore[union-attr]


def test_a_part_is_held_out_where_there_is_enough() -> None:
    photos("many", 30)
    said = run("many")[1]
    recipe = load_recipe("many.yaml")
    assert (recipe.data.held_out, recipe.training.epochs, recipe.training.eval_every) == (0.1, 30.0, 24)
    assert "120 steps of 8 samples, 30 passes over 27 records" in said
    assert "3 records are kept for evaluation, every 24 steps" in said
    said = run("many", "data.held_out=0.04", "training.eval_every=1", "training.max_steps=1", overwrite=True)[1]
    assert "training is 1 step of 8 samples" in said and "1 record is kept for evaluation, every step (" in said
    run("many", "data.held_out=0.2", "training.eval_every=7", "training.max_steps=50", overwrite=True)
    recipe = load_recipe("many.yaml")
    assert (recipe.data.held_out, recipe.training.eval_every, recipe.training.epochs) == (0.2, 7, 30.0)
    run("many", "data.eval.path=many/captions.csv", overwrite=True)
    assert load_recipe("many.yaml").data.held_out is None
    said = run(photos("few", 3), width=1000)[1]
    assert load_recipe("few.yaml").data.held_out is None and load_recipe("few.yaml").training.eval_every is None
    assert said.count("there are 3 records, and from 20 on 10% of them are held out, so none is kept") == 1
    own = re.search(r"a file of your own for it: data.eval.path=FILE (.*)", said)
    prompt = load_recipe("few.yaml").data.train.prompt  # type: ignore[union-attr]
    assert own is not None and shlex.split(own[1]) == [f"data.eval.prompt={prompt}"]
    said = run("few", "data.eval.path=few/captions.csv", overwrite=True)[1] + run("many", overwrite=True)[1]
    assert "held out, so" not in said


def test_a_recipe_that_generates_at_evaluations_does_so_where_a_part_is_held_out() -> None:
    photos("many", 30)
    photos("few", 3)
    text = run("many", "data.eval.path=many/captions.csv", "training.eval_generate=9")[0]
    run("many", base=str(text), overwrite=True)
    assert load_recipe("many.yaml").training.eval_generate == 9
    run("few", base=str(text))
    assert load_recipe("few.yaml").training.eval_generate == 0


def test_of_short_answers_the_best_step_is_kept() -> None:
    """Long ones are hardly ever right word for word, and of too few nothing is learnt."""
    photos("many", 40)
    said = run("many", "data.held_out=0.4")[1]
    assert load_recipe("many.yaml").training.eval_generate == 0 and "eval_generate" not in said
    rows = [{"image": f"p{n}.png", "question": f"what {n}?", "answer": "a dog"} for n in range(40)]
    Path("many/qa.json").write_text(json.dumps(rows))
    text, said = run("many/qa.json", "data.held_out=0.4", width=1000)
    training = load_recipe(text).training
    assert (training.eval_generate, training.eval_metric, training.metric_for_best_model) == (16, "exact", "auto")
    steps = re.search(r"training is (\d+) steps of 8 samples", said)
    assert steps is not None
    asking = 5 * 16 * 1.6  # samples, as many as the questions of five looks take
    share = f"{asking / (asking + 8 * int(steps[1])):.0%}"
    told = (
        "the model answers 16 of the held-out questions, and the step that answers best is kept as best/ beside final/"
    )
    assert f"{told}; predicted to take {share} of the run's time" in said
    head = text.read_text(encoding="utf-8")
    assert f"# eval_generate: at each evaluation {told}" in head and "basic-lite check qa.yaml " in said
    run("many/qa.json", "data.held_out=0.4", "training.eval_generate=0", overwrite=True)
    assert load_recipe("qa.yaml").training.eval_generate == 0
    run("many/qa.json", overwrite=True)
    assert load_recipe("qa.yaml").training.eval_generate == 0, "4 questions tell nothing"


def test_questions_need_no_prompt_and_a_plain_template_reads_none() -> None:
    photos("p")
    rows = [{"image": "p0.png", "question": "what?", "answer": "a dog", "question_type": "kind"}] * 3
    Path("p/qa.json").write_text(json.dumps(rows))
    written, said = run("p/qa.json", "data.eval.path=p/qa.json")
    recipe = load_recipe(written)
    assert "questions and answers, in p/qa.json" in said and "question is 'question'" in said
    assert 'chat runs/qa p/p0.png "what?"' in said
    assert recipe.data.train.prompt is None and recipe.data.eval is not None  # type: ignore[union-attr]
    written, _ = run("p/captions.csv", "model.vision=/nowhere", "model.llm=/nowhere", base="7b_pretrain")
    assert load_recipe(written).data.train.prompt is None  # type: ignore[union-attr]


def test_what_is_refused() -> None:
    photos("p")
    Path("p.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"p.yaml is there already; add --overwrite"):
        run("p")
    run("p", overwrite=True)
    for overrides, out, expected in [
        (["training.epoch=3"], "x.yaml", "epoch"),
        ([], "nowhere/x.yaml", "no folder nowhere"),
        ([], "p", "is a folder"),
        (["data.train=[{path: a}, {path: b}]"], "x.yaml", "list of sources"),
    ]:
        with pytest.raises(UserError, match=expected):
            run("p", *overrides, out=Path(out))
    with pytest.raises(UserError, match=r'my: .* a name with spaces goes in quotes, as in "my pics"'):
        run("my", "pics")
    Path("bad.csv").write_text("image,caption\nx.png,one\n")
    with pytest.raises(UserError, match="the one record can't be used"):
        run("bad.csv")
    assert not Path("bad.yaml").exists() and not Path("x.yaml").exists()
    with small_disk(Path("disk"), "4k") as disk:
        (disk / "other").write_bytes(b"x" * 4096)
        with pytest.raises(UserError, match=r"full\. Make room, or name .* --out"):
            run("p", out=disk / "x.yaml")


def test_it_reads_well_on_a_narrow_screen() -> None:
    _, said = run(photos("photos", texts=True), width=40)
    prose = [line for line in said.splitlines() if not line.startswith("  basic-lite")]
    assert max(map(len, prose)) <= 40
    assert "  basic-lite train photos.yaml" in said.splitlines()


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    photos("photos")
    with pytest.raises(SystemExit) as ended:
        main(["data", "photos", "--recipe", DEMO, "--out", "mine.yaml", "name=other", "training.epochs=2"])
    assert ended.value.code == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.name, recipe.training.epochs) == ("other", 2.0)
    assert "basic-lite chat runs/other photos/p0.png" in capsys.readouterr().out


def test_epochs_give_small_data_enough_steps(tmp_path: Path) -> None:
    def epochs(records: int, **training: Any) -> float:
        changes = {"training.max_steps": None, "training.global_batch": 8, "training.epochs": 3.0}
        return fitted_epochs(
            tiny_recipe(tmp_path, changes | {f"training.{k}": v for k, v in training.items()}), records
        )

    assert [epochs(n) for n in (1, 50, 100, 400, 4000)] == [30, 15, 8, 3, 3]
    assert epochs(50, max_steps=7) == 3 and epochs(50, epochs=40.0) == 40


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_recipes_comments_stay(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert recipe_text(text, head_of(text), {}) == text
    changed = recipe_text(text, [], {"name": "x", "data.train": {"path": "y"}, "data.eval": None})
    values = read_document(text, "a").values
    assert values is not None
    values |= {"name": "x", "data": {**values["data"], "train": {"path": "y"}}}
    assert read_document(changed, "b").values == values
    assert changed.count("#") >= text.count("#") - len(head_of(text)) - 1 - text.count("# header")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(path=TEXT, prompts=st.lists(TEXT, min_size=1, max_size=3), rate=st.floats(0, 1), name=TEXT)
def test_what_is_written_is_read_back(path: str, prompts: list[str], rate: float, name: str) -> None:
    base = "name: a  # the run\n\ndata:\n  train:\n    path: x  # there\n\ntraining:\n  epochs: 1\n"
    section = {"path": path, "prompt": prompts, "columns": {name: path}}
    text = recipe_text(base, ["one", "two"], {"name": name, "data.train": section, "training.rate": rate, "x.y": True})
    document = read_document(text, "recipe")
    assert document.problems == []
    rest = {"data": {"train": section}, "training": {"epochs": 1, "rate": rate}, "x": {"y": True}}
    assert document.values == {"name": name, **rest}


@given(name=TEXT)
def test_a_runs_name_is_a_folders(name: str) -> None:
    made = legal_name(Path("/data") / name.replace("/", "_").replace("\0", "_"))
    assert made == made.strip(". ") and made and not {*made} & {*'/\\<>:"|?* \n'}


@pytest.mark.parametrize("text", ["photos/a.png", "my photos/a.png", "it's", 'say "hi" $HOME', "a\\b !1", "bücher"])
def test_a_typed_word_is_one_word(text: str) -> None:
    assert shlex.split(command_line([text])) == [text]
