"""``check``: each fault that was put into data is found, with what mends it, and nothing is found in good data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from rich.console import Console

from basic_lite.cli import main
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.recipe.rules import sources_in
from basic_lite.tools.check import blind
from basic_lite.tools.check.command import check, opened
from basic_lite.tools.check.findings import Finding
from tests.support.data import scene
from tests.support.models import write_llm
from tests.support.pages import PageText
from tests.support.runs import quiet

DEMO = "demo_photos"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """LLaVA records with 20 pictures of their own, and more records."""
    monkeypatch.chdir(tmp_path)

    def write(*more: dict[str, object], answer: str = "a red circle") -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        records = []
        for n in range(20):
            scene(n).save(folder / f"{n}.png")
            records.append(one(f"{n}.png", f"question {n} ?", f"{answer} {n}"))
        path = folder / "list.json"
        path.write_text(json.dumps([*records, *more]))
        return path

    return write


def one(picture: str, asked: str, said: str) -> dict[str, object]:
    turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}]
    return {"image": picture, "conversations": turns}


def found_in(path: Path, *overrides: str, **keys: object) -> dict[str, Finding]:
    return {one.name: one for one in check(path, base=DEMO, overrides=overrides, console=quiet(), **keys)}  # type: ignore[arg-type]


def test_good_data_has_no_faults(made: Callable[..., Path]) -> None:
    found = found_in(made())
    # The demo's encoder has 48 pixels a side, and its tokenizer 62 words.
    faults = {name for name, one in found.items() if one.kind != "fact"}
    assert faults == {"pictures made small", "unknown words in answers", "unknown words in questions"}
    assert "doesn't know 25% of the words of the answers (<unk> stands" in found["unknown words in answers"].text
    assert found["length"].text.endswith("a picture is 36 of them") and found["pictures made small"].count == "100%"


def test_captions_are_looked_at_with_the_recipes_own_question(tmp_path: Path) -> None:
    """As `data` writes it. The demo's model was said not to know the words of another question."""
    scene(0).save(tmp_path / "0.png")
    (tmp_path / "captions.csv").write_text("image,caption\n0.png,a red circle\n")
    assert sources_in(opened(tmp_path, "demo_photos", []).recipe.data.train)[0].prompt == "describe the image."
    assert isinstance(sources_in(opened(tmp_path, "my_photos", []).recipe.data.train)[0].prompt, list)


def test_every_fault_is_found(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made(
        *[one(name, "x ?", "y") for name in ("copy.png", "small.jpg", "broken.png", "none.png")],
        one("3.png", "x ?", "so it goes, " * 50), one("4.png", "x ?", "the end </s>"), one("5.png", "x ?", "кошка"),
        {"image": "6.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " "}]},
        *[one(f"{n}.png", "same ?", "yes") for n in range(8)],
    )  # fmt: skip
    folder = path.parent
    shutil.copy(folder / "0.png", folder / "copy.png")
    scene(1).resize((200, 150)).save(folder / "small.jpg", quality=80)
    (folder / "broken.png").write_bytes((folder / "2.png").read_bytes()[:200])
    found = found_in(path, "data.max_length=100")
    counts = {name: one.count.split(" ")[0] for name, one in found.items() if one.kind != "fact"}
    # "same ?" is answered alike 8 times of 8, "x ?" 3 times of 6.
    assert counts == {
        "records: unreadable picture": "2", "records: no supervised token": "1", "answers cut": "1",
        "endless answers": "1", "special tokens in text": "1", "pictures twice": "1", "pictures that look alike": "1",
        "answers by rote": "79%", "pictures made small": "100%", "held out, but trained on": "1",
        "unknown words in answers": "46%", "unknown words in questions": "49%",
    }  # fmt: skip
    assert (
        "Cyrillic 1" in found["scripts"].text and "data.bad_records=drop" in found["records: unreadable picture"].mend
    )
    text = (tmp_path / "list_check.html").read_text()
    page = PageText(text)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links) and len(page.links) > 10
    assert "small.jpg" in page.text and "asked 8 times" in page.text and "<script" not in text


def test_pictures_without_anything_to_see_are_found(made: Callable[..., Path]) -> None:
    """A black drawing on a transparent ground, a scan of 12 bits in 16, and one that is dark, but no more than that."""
    path = made(*[one(name, "x ?", "y") for name in ("drawing.png", "scan.png", "dark.png")])
    drawing = np.zeros((64, 64, 4), dtype=np.uint8)
    drawing[16:48, 16:48, 3] = 255
    grey = np.random.default_rng(0).random((64, 64))
    for name, pixels in (("drawing", drawing), ("scan", grey * 4095), ("dark", grey * 8191)):
        kept = pixels if name == "drawing" else pixels.astype(np.uint16)
        Image.fromarray(kept).save(path.parent / f"{name}.png")
    found = found_in(path)["pictures of one colour"]
    assert found.count.startswith("2 ") and found.kind == "look" and "on white" in found.mend


@pytest.mark.parametrize("broken", [0, 1, 20])
def test_the_records_that_are_left_are_counted(
    made: Callable[..., Path], capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    path = made(one("0.png", "x ?", "y"))  # two records have this picture
    for n in range(broken):
        (path.parent / f"{n}.png").write_bytes(b"no picture")
    check(path, base=DEMO, console=Console())
    left, unread = 21 - (broken + 1 if broken else 0), f", {broken} of them unreadable" if broken else ""
    assert f"\n{left} of 21 records can be used; 20 pictures{unread}\n" in capsys.readouterr().out


def test_the_terminal_names_the_records(
    made: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By file, number and id, of all kinds of findings: a broken record, a text, a picture, a pair of pictures."""
    more = [one("none.png", "x ?", "y"), one("copy.png", "x ?", "in the <image>"), one("broken.png", "x ?", "y")]
    more += [one(f"{n}.png", "x ?", "a </s> b") for n in range(4)]
    more += [one("none.png", "x ?", "y")]
    path = made(*[{**record, "id": f"no{n}"} for n, record in enumerate(more)])
    shutil.copy(path.parent / "0.png", path.parent / "copy.png")
    (path.parent / "broken.png").write_bytes((path.parent / "2.png").read_bytes()[:200])
    check(Path("data/list.json"), base=DEMO, console=Console())
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    # In the order of the file, whether a picture is missing or broken.
    assert lines["records: unreadable picture"].endswith(
        "First: data/list.json, record 21 (id no0); data/list.json, record 23 (id no2); "
        "data/list.json, record 28 (id no7)"
    )
    tokens = lines["special tokens in text"]
    assert "</s> (4), <image> (1)" in tokens and tokens.endswith(
        "First: data/list.json, record 22 (id no1); data/list.json, record 24 (id no3); "
        "data/list.json, record 25 (id no4); …"
    )
    pair = "0.png (data/list.json, record 1) and copy.png (data/list.json, record 22 (id no1))"
    assert lines["pictures twice"].endswith(f"Largest: {pair}") and "First" not in lines["scripts"]
    assert lines["finding"].endswith("what it is, and what to do") and "1 script " in lines["scripts"]
    assert "twice as often as others" in lines["pictures twice"]
    text = PageText((tmp_path / "list_check.html").read_text()).text
    assert "record 21 (id no0)" in text and "record 22 (id no1)" in text


def test_held_out_pictures_that_are_trained_on(made: Callable[..., Path]) -> None:
    """All pictures have a copy under another name, so what is held out is trained on, or its copy is held out too."""
    path = made(*[one(f"copy{n}.png", "x ?", "y") for n in range(20)])
    for n in range(20):
        if n % 2:
            shutil.copy(path.parent / f"{n}.png", path.parent / f"copy{n}.png")
        else:
            scene(n).resize((240, 180)).save(path.parent / f"copy{n}.png")
    found = found_in(path, "data.held_out=0.1")
    assert int(found["held out, but trained on"].count.split(" ")[0]) >= 2
    other = path.with_name("other.json")
    other.write_text(json.dumps([one("0.png", "x ?", "y"), one("copy1.png", "x ?", "y"), one("copy2.png", "x ?", "y")]))
    path.write_text(json.dumps([one(f"{n}.png", f"{n} ?", "y") for n in range(20)]))
    apart = [f"data.eval.path={other}", f"data.eval.image_dir={path.parent}", "training.eval_every=1"]
    found = found_in(path, *apart)
    assert found["held out, but trained on"].count == "2 (66.7%)" and found["held out, but alike"].count == "1 (33.3%)"
    alike = found["held out, but alike"]
    assert alike.kind == "look" and "may be too good" in alike.text


@pytest.mark.long
def test_nothing_is_said_of_held_out_pictures_where_none_is_held_out(made: Callable[..., Path], tmp_path: Path) -> None:
    """By a recipe without `data.held_out`, and of so few records that `basic-lite data` holds none out."""
    path = made()
    for n in range(1, 20):
        shutil.copy(path.parent / "0.png", path.parent / f"{n}.png")
        # Each is a file of its own, and they look alike.
        (path.parent / f"{n}.png").write_bytes((path.parent / "0.png").read_bytes() + bytes([n]))
    of_them = {"held out, but trained on", "held out, but alike"}
    assert found_in(path).keys() & of_them
    path.write_text(json.dumps(json.loads(path.read_text())[:19]))
    assert not found_in(path).keys() & of_them
    recipe = tmp_path / "own.yaml"
    own = [f"data.train.path={path}", f"data.train.image_dir={path.parent}", "data.train.prompt=null"]
    recipe.write_text(dump_recipe(load_recipe(DEMO, [*own, "data.held_out=null", "training.eval_every=null"])))
    assert not {one.name for one in check(recipe, base=DEMO, console=quiet())} & of_them
    assert found_in(path, "data.held_out=0.1").keys() & of_them


def test_a_bad_record_in_the_file_for_evaluation_is_a_finding(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made()
    other = path.with_name("other.json")
    other.write_text(json.dumps([{"image": "2.png"}, one("0.png", "x ?", "y"), one("none.png", "x ?", "y")]))
    apart = [f"data.eval.path={other}", f"data.eval.image_dir={path.parent}", "training.eval_every=1"]
    found = found_in(path, *apart)
    assert (
        found["held-out records: bad record"].count
        == found["held-out records: unreadable picture"].count
        == "1 (33.3%)"
    )
    assert found["held out, but trained on"].count == "1 (100.0%)" and "records: bad record" not in found
    assert "other.json" in PageText((tmp_path / "list_check.html").read_text()).text


@pytest.mark.soak
def test_a_recipe_and_a_table_of_captions(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made()
    (path.parent / "captions.csv").write_text("image,caption\n" + "".join(f"{n}.png,a cat {n}\n" for n in range(20)))
    path.unlink()
    assert found_in(path.parent)["scripts"].text.startswith("the answers' letters: Latin 20 (100.0%)")
    with pytest.raises(SystemExit):
        main(["data", str(path.parent), "--recipe", DEMO])
    assert "length" in found_in(tmp_path / "data.yaml")


@pytest.mark.soak
def test_a_language_model_that_knows_the_answers(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A random one has none of them right."""
    path = made()
    write_llm(Path("llm"))
    found = found_in(path, model="llm")["answered blind"]
    assert "of 20 answers" in found.text and found.count == "0%"
    monkeypatch.setattr(blind, "_answer_loss", lambda llm, tokenizer, record: (0.5, record.number % 2 == 0))
    found = found_in(path, model="llm")["answered blind"]
    assert found.count == "50%" and "0.50 nats" in found.text and found.kind == "look" and len(found.examples) == 10


def test_a_language_model_too_large_is_said_before_the_pictures(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(blind, "blind", full)
    monkeypatch.setattr("basic_lite.tools.check.command.survey", None)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(made()), "--recipe", DEMO, "--model", "some/llm"])
    text = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and "Traceback" not in text
    assert "error: out of memory with some/llm; name a smaller model with --model, or leave the option out" in text


def test_what_is_refused(made: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = made()
    (tmp_path / "mine.html").write_text("my page")
    for words, reason in [
        (["none"], "there is no such file"),
        ([path, "--out", tmp_path / "mine.html"], "choose another name"),
        ([path, "--model", "no/such/model/here"], "--model: there is no folder"),
        ([path, "--recipe", "nothing"], "nothing"),
        ([path, "data.x=1"], "data.x"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["check", *map(str, words), *([] if "--recipe" in words else ["--recipe", DEMO])])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and reason in err and "Traceback" not in err


def test_it_fits_a_narrow_terminal(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    check(made(), base=DEMO, console=Console(width=40, force_terminal=True, color_system=None))
    assert all(len(line) <= 40 for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_split_is_told_with_its_counts(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"list.{ending}")
    rows = [{"image": f"{n}.png", "caption": "a red circle", "Split": ("train", "val")[n % 4 == 3]} for n in range(8)]
    for n in range(8):
        scene(n).save(f"{n}.png")

    def write() -> None:
        if ending == "csv":
            path.write_text("\n".join(",".join(one) for one in [rows[0].keys(), *(row.values() for row in rows)]))
        elif ending == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            Dataset.from_list(rows).to_parquet(path)

    write()
    found = found_in(path)["column 'split'"]
    assert (found.kind, found.count) == ("look", "2 values")
    assert found.text.endswith(": train 6, val 2") and "data.eval.path" in found.mend
    for row in rows:
        row["Split"] = "train"
    write()
    assert "column 'split'" not in found_in(path)
