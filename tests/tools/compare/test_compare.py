"""``compare``: which files it takes, what it refuses, and what it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.compare.answers import candidates
from basic_lite.tools.compare.command import compare
from basic_lite.tools.compare.comparison import compared, remarks, sides_of
from basic_lite.tools.compare.losses import losses_of
from basic_lite.tools.predictions import write_predictions
from basic_lite.tools.report.charts import Chart, Line
from tests.support.pages import PageText

KINDS = ("colour", "count")


def answered(run: Path, right: str, *, name: str = "held-out", words: str = "what", **changed: Any) -> Path:
    """A run's predictions: one question for each letter of ``right``, r or w."""
    trained, metric = changed.pop("trained_on", ""), changed.pop("metric", "exact")
    added, digest = changed.pop("added", ""), changed.pop("data_sha256", "d")
    pictures = changed.pop("pictures", "")
    rows = [
        Prediction(
            n + 1, str(n), KINDS[n % 2], [f"{n}.png"], f"{words} {n}?{added}", "red",
            "red" if mark == "r" else "<b>blue", mark == "r", trained_on=str(n) in trained,
            image_digests=[pictures[n]] if pictures else [],
        )
        for n, mark in enumerate(right)
    ]  # fmt: skip
    path = run / f"predictions_{name}_final.jsonl"
    settings = {"data": name, "data_sha256": digest, **changed}
    write_predictions(rows, {"settings": settings, "metric": metric}, path)
    return path


def logged(
    run: Path,
    losses: dict[int, float],
    held_out: dict[int, float],
    records: int = 5,
    trained: int = 7,
    split: dict[str, Any] | None = None,
) -> None:
    lines = [{"step": step, "lm": value} for step, value in losses.items()]
    lines += [{"step": step, "eval_loss": value} for step, value in held_out.items()]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "data.json").write_text(
        json.dumps({"train": {"used": trained}, "eval": {"used": records, "tokens": 9, **(split or {})}})
    )


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., list[Path]]:
    def made(*rights: str, **changed: Any) -> list[Path]:
        places = [tmp_path / f"run{n}" for n in range(len(rights))]
        for place, right in zip(places, rights, strict=True):
            answered(place, right, **changed)
        return places

    return made


def test_the_numbers(runs: Callable[..., list[Path]]) -> None:
    found = compared(sides_of(runs("r" * 20 + "w" * 20, "r" * 30 + "w" * 10), []))
    (one,) = found.against
    assert (found.n, [score.value for score in found.scores]) == (40, [0.5, 0.75])
    assert one.test is not None and (one.test.first, one.test.second) == (0, 10)
    assert one.test.p == pytest.approx(2 / 2**10) and one.gain.value == 0.25 and one.verdict == "better"
    assert [(row.name, row.n, row.scores) for row in found.types] == [
        ("colour", 20, [0.5, 0.75]), ("count", 20, [0.5, 0.75]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "counts, verdict",
    [((20, 9, 2), "no clear difference"), ((20, 2, 9), "no clear difference"), ((20, 9, 1), "better"),
     ((20, 1, 9), "worse"), ((300, 16, 7), "no clear difference")],
)  # fmt: skip
def test_better_is_said_where_interval_and_test_find_it(
    runs: Callable[..., list[Path]], counts: tuple[int, int, int], verdict: str
) -> None:
    """Of 20 questions 9 that one alone has right against 2 were called better, beside a p of .065."""
    n, second, first = counts
    rest = "r" * (n - first - second)
    found = compared(sides_of(runs("w" * second + "r" * first + rest, "r" * second + "w" * first + rest), []))
    (one,) = found.against
    assert one.gain.low > 0 or one.gain.high < 0
    assert one.verdict == verdict
    assert any("don't both find one" in line for line in remarks(found)) == (not one.agree) == (verdict[0] == "n")


def test_answers_of_a_checkpoint_are_told(runs: Callable[..., list[Path]]) -> None:
    """Those of a run that wasn't finished stood in the table as any other's."""
    places = runs("rw" * 10, "rr" * 10, bundle="final")
    answered(places[0], "rw" * 10, bundle="checkpoint-5")
    assert compared(sides_of(places, [])).notes == ["run0 answered as it was at checkpoint-5, before its end"]


def test_groups_are_means_of_runs(runs: Callable[..., list[Path]]) -> None:
    a, b, c = runs("rrww" * 10, "rwww" * 10, "rrrw" * 10)
    found = compared(sides_of([], [f"off={a},{b}", f"on={c}"]))
    assert [side.name for side in found.sides] == ["off", "on"]
    assert [score.value for score in found.scores] == [0.375, 0.75] and found.against[0].test is None
    assert any("fewer than 5 runs" in note for note in found.notes)


def test_what_was_trained_on_is_left_out(runs: Callable[..., list[Path]]) -> None:
    one, other = runs("rrww", "rrrw")
    answered(other, "rrrw", trained_on="2")
    found = compared(sides_of([one, other], []))
    assert found.n == 3 and found.against[0].gain.value == 0 and "1 question whose" in found.notes[0]
    answered(other, "rrrw", trained_on="0123")
    assert compared(sides_of([one, other], [])).n == 4


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 7, -3, 1e308])
def test_a_score_that_is_none_is_not_believed(
    runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str], odd: float
) -> None:
    """One such answer made a run `better` or `worse`."""
    one, other = runs("rw" * 20, "rw" * 20)
    path = next(other.glob("*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | ({"score": odd} if row["number"] == 3 else {})) + "\n" for row in rows))
    assert "1 of 40 are only in the first" in refused(one, other, capsys=capsys)


def test_one_question_is_counted_as_one(runs: Callable[..., list[Path]]) -> None:
    found = compared(sides_of(runs("rr", "rw", trained_on="0"), []))
    assert found.questions == "1 question"
    assert list(remarks(found)) == [
        "left out: 1 question whose pictures a run was trained on",
        "too few to tell better from worse: 1 question",
    ]


def test_rotations_of_a_question_count_once(runs: Callable[..., list[Path]]) -> None:
    places = runs("rrrw", "rrrr")
    for place in places:
        (path,) = place.glob("*.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"circle": str(n // 2), "score": float(row["correct"])} for n, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compared(sides_of(places, []))
    assert found.n == 2 and [score.value for score in found.scores] == [0.5, 1.0]
    assert any("was changed since" in note for note in found.notes)


def test_the_latest_file_that_all_have(runs: Callable[..., list[Path]]) -> None:
    one, other = runs("rw", "rr")
    answered(one, "rrr", name="mine")
    assert compared(sides_of([one, other], [])).n == 2
    answered(other, "rww", name="mine")
    assert compared(sides_of([one, other], [])).n == 3
    assert compared(sides_of([next(one.glob("*held*.jsonl")), other], [])).n == 2


def test_the_latest_is_of_the_last_step_and_name_whatever_a_files_time(
    runs: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """Copying a folder changes times, and may reverse them."""
    one, other = runs("rw", "rr", step=5)
    for name, right, step in (("zz", "ww", 4), ("a_2", "wr", 7), ("a_10", "rr", 7), ("a_9", "ww", 7)):
        answered(one, right, name=name, step=step)
    for back, times in ((1, [2e9, 1e9]), (-1, [1e9, 2e9])):
        paths = sorted(one.glob("*.jsonl"))[::back]
        for path, time in zip(paths, np.linspace(*times, len(paths)), strict=True):
            os.utime(path, (time, time))
        assert candidates(one)[0].path.name == "predictions_a_10_final.jsonl"
        assert [score.value for score in compared(sides_of([one, other], [])).scores] == [1.0, 1.0]


def refused(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in err
    return " ".join(err.split())


def test_lists_in_place_of_names_are_other_questions(
    runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by the fuzz suite: what tells questions apart was hashed as it stood in the file."""
    one, other = runs("rw", "rr")
    (path,) = other.glob("*.jsonl")
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    for changed in ({"number": [None]}, {"id": []}, {"images": [["0.png"]]}, {"number": {"a": 1}}):
        path.write_text("\n".join([json.dumps(json.loads(first) | changed), *rest, ""]), encoding="utf-8")
        said = refused(one, other, capsys=capsys)
        assert "answer different questions" in said or "predictions" in said


def test_what_is_refused(runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one, other, third = runs("rw", "rr", "ww")
    answered(other, "rr", words="why")
    text = refused(one, other, capsys=capsys)
    assert "different questions: 2 of 2" in text and "number 1 ('what 0?')" in text and "basic-lite eval" in text
    answered(other, "rr", metric="anls")
    assert "scored by exact" in refused(one, other, capsys=capsys)
    assert "two runs or more" in refused(one, capsys=capsys)
    assert "two runs or more" in refused(capsys=capsys)
    assert "named twice" in refused(one, f"{one}/../run0", capsys=capsys)
    assert "is the only file that answers these questions" in refused(one, next(one.glob("*.jsonl")), capsys=capsys)
    assert "NAME=RUN" in refused("--group", "x", "--group", "y=z", capsys=capsys)
    assert "two sides are called" in refused("--group", f"x={one}", "--group", f"x={third}", capsys=capsys)
    assert "no run folder" in refused(one, tmp_path / "none", capsys=capsys)
    (tmp_path / "mine.html").write_text("my page")
    assert "choose another name" in refused(one, third, "--out", tmp_path / "mine.html", capsys=capsys)
    assert "is a folder" in refused(one, third, "--out", tmp_path, capsys=capsys)
    assert "make it first" in refused(one, third, "--out", tmp_path / "no" / "x.html", capsys=capsys)
    next(third.glob("*.summary.json")).unlink()
    assert "isn't known" in refused(one, third, capsys=capsys)
    next(third.glob("*.jsonl")).unlink()
    assert "no run folder" in refused(one, third, capsys=capsys)


def test_a_file_that_cannot_be_used_is_passed_over(
    runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = runs("rw", "rr")
    answered(one, "rw", name="z").with_suffix(".summary.json").unlink()
    for name, text in (("y", ""), ("x", "no json\n"), ("w", '{"question": "what 0?"}\n')):
        answered(one, "rw", name=name).write_text(text)
    found = compared(sides_of([one, other], []))
    assert found.n == 2 and [score.value for score in found.scores] == [0.5, 1.0]
    path = one / "predictions_z_final.jsonl"
    assert f"passed over: {path} has no predictions_z_final.summary.json beside it, so it isn't known what" in str(
        found.notes
    )
    assert sum("passed over" in note and "has no scored answers" in note for note in found.notes) == 3
    answered(one, "rw", words="why")  # none is left that fits
    text = refused(one, other, capsys=capsys)
    assert "different questions: 2 of 2" in text and f"(passed over: {one / 'predictions_w_final.jsonl'} has no" in text
    assert "has no predictions_z_final.summary.json beside it" in refused(path, other, capsys=capsys)
    next(one.glob("*held-out*.jsonl")).unlink()
    assert "has no scored answers" in refused(one, other, capsys=capsys)


def test_what_differs_is_said(runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]) -> None:
    """Another limit or instruction isn't other data, and other data is named."""
    one, other = runs("rwrw", "rrrr")
    answered(other, "rr", limit=2)
    text = refused(one, other, capsys=capsys)
    assert "all questions, and" in text and "2 questions (--limit 2), of the same data" in text
    assert "evaluate both with one --limit" in text and "different questions" not in text
    answered(other, "rrrr", added="\nAnswer with one word.")
    text = refused(one, other, capsys=capsys)
    assert "the first adds nothing, the second ends each question with 'Answer with one word.'" in text
    assert "--instruction" in text
    answered(one, "rwrw", added="\nAnswer shortly.")
    assert "the first ends each question with 'Answer shortly.', the second" in refused(one, other, capsys=capsys)
    answered(one, "rwrw", name="mine", data="/home/me/mine.json")
    (next(one.glob("*held*.jsonl"))).unlink()
    answered(other, "rrrr", name="yours", words="who", data="/srv/yours.json")
    path = next(other.glob("*yours*.jsonl"))
    path.write_text(path.read_text().replace(".png", ".jpg"))
    text = refused(next(one.glob("*mine*.jsonl")), path, capsys=capsys)
    assert "answer different questions (mine.json and yours.json): 4 of 4" in text


def test_what_was_asked_otherwise_is_noted(runs: Callable[..., list[Path]]) -> None:
    one, other = runs("rwrw", "rrrr")
    answered(other, "rrrr", max_new_tokens=64)
    (note,) = compared(sides_of([one, other], [])).notes
    assert note == "they were asked with different max_new_tokens (None, 64), which changes answers"


def test_other_pictures_of_the_same_names_are_refused(
    runs: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, third = runs("rwrw", "rrrr", "rrrr", pictures="abcd")
    answered(other, "rrrr", pictures="abce", data_sha256="e")
    text = refused(third, one, other, capsys=capsys)
    assert "the same questions about other pictures: 1 of 4 have pictures of the same names" in text
    assert "as number 4 (\"['3.png']\"); evaluate both with the same files" in text
    answered(other, "rrrr", pictures="abcd", data_sha256="e")  # the files lie elsewhere, and are the same
    assert compared(sides_of([third, one, other], [])).notes == []
    answered(one, "rwrw", name="a", pictures="xyzv")  # of several files that one is taken which fits
    assert compared(sides_of([one, other], [])).notes == []
    answered(other, "rrrr", data_sha256="e")  # an older version didn't write it down
    (note,) = compared(sides_of([third, other], [])).notes
    assert note == "the questions are the same word for word; their pictures' files lie elsewhere or are newer"


def test_one_place_on_an_axis_is_in_its_middle(runs: Callable[..., list[Path]]) -> None:
    """As where the held-out loss was measured once: one tick below it, and none beside it."""
    chart = Chart("says", "step", "nats", [Line("a", [(100, 2.0)]), Line("b", [(100, 1.0)])]).svg()
    ticks = re.findall(r'<text x="([\d.]+)" y="211" text-anchor="middle">([^<]*)<', chart)
    assert [name for _, name in ticks] == ["100"]
    assert {float(x) for x in re.findall(r'cx="([\d.]+)"', chart)} == {float(ticks[0][0])} == {(72 + 468) / 2}
    alone = Chart("says", "step", "nats", [Line("a", [(100, 2.0)])]).svg()
    assert re.findall(r'cy="([\d.]+)"', alone) == ["101.0"]


def test_losses_at_the_same_steps(runs: Callable[..., list[Path]]) -> None:
    a, b, c = runs("r", "r", "r")
    logged(a, {1: 4, 2: 3, 3: 2}, {3: 1})
    logged(b, {2: 2, 3: 1, 4: 0}, {3: 3})
    logged(c, {2: 1, 3: float("nan")}, {3: 5})
    assert losses_of([[a], [b]])[1] == []
    with (b / "log.jsonl").open("a") as log:
        log.write("[1]\n{}\n")
    (train, held), damaged = losses_of([[a], [b]])
    assert damaged == [f"{b}: 2 lines of log.jsonl are damaged and left out"]
    assert (train.steps, train.values, train.last) == ([2, 3], [[3, 2], [2, 1]], [2, 1])
    assert held.values == [[1], [3]]
    (train, held), _ = losses_of([[a, b], [c]])
    assert (train.steps, train.values, held.values) == ([2], [[2.5], [1]], [[2], [5]])
    logged(b, {2: 2}, {3: 3, 4: float("nan")})
    assert losses_of([[a], [b]])[1] == [f"{b}: its held-out loss is no number at step 4; that is left out"]
    logged(b, {2: 2}, {2: float("inf"), 3: float("nan")})
    (train,), (said,) = losses_of([[a], [b]])
    assert said.endswith("its held-out loss is no number at 2 steps, the last of them 3; that is left out")
    logged(b, {2: 2}, {3: 3}, records=6)
    assert [one.name for one in losses_of([[a], [b]])[0]] == ["training loss"]
    logged(b, {2: 2}, {3: 3}, trained=8)
    assert [one.name for one in losses_of([[a], [b]])[0]] == ["held-out loss"]
    assert losses_of([[a], [a / "predictions_held-out_final.jsonl"]]) == ([], [])


def test_held_out_losses_of_other_records_are_not_alike(runs: Callable[..., list[Path]]) -> None:
    """Two splits may have the same counts."""
    a, b = runs("r", "r")
    split = {"held_out": [1, 4], "held_out_pictures": [["1.png"], ["4.png"]]}
    others = {"held_out": [1, 5]}, {"held_out_pictures": [["1.png"], ["5.png"]]}
    for other, names in [({}, {"training loss", "held-out loss"}), *[(one, {"training loss"}) for one in others]]:
        logged(a, {2: 3}, {2: 1}, split=split)
        logged(b, {2: 2}, {2: 3}, split=split | other)
        assert {one.name for one in losses_of([[a], [b]])[0]} == names


def test_the_page_is_whole_and_needs_nothing(runs: Callable[..., list[Path]], tmp_path: Path) -> None:
    places = runs("rw" * 20, "rr" * 20, "ww" * 20, data="/home/somebody/secret/questions.json")
    for n, place in enumerate(places):
        logged(place, {step: 3 / step + n for step in range(1, 200)}, {100: 1.0})
    out = tmp_path / "compare.html"
    with open(os.devnull, "w") as nowhere:
        compare(sides_of(places, []), out, Console(file=nowhere))
        compare(sides_of(places, []), out, Console(file=nowhere))  # its own page is replaced
    text = out.read_text()
    page = PageText(text)
    assert "of questions.json" in page.text and "somebody" not in text and "secret" not in text
    assert page.links == [] and "<script" not in text and "<b>blue" not in text and "&lt;b&gt;blue" in text
    for words in ("run1 right, run0 wrong: 20", "run2 against run0", "worse", "better"):
        assert words in page.text
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", page.text.lower())


@pytest.mark.parametrize("width", [40, 80])
def test_the_tables_fit_a_terminal(
    runs: Callable[..., list[Path]], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    places = runs("rw" * 20, "rr" * 20, "ww" * 20)
    console = Console(width=width, force_terminal=True, color_system=None)
    compare(sides_of(places, []), console=console)
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines()) and "better" in out and "run2" in out


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    names = [side.name for side in sides_of([tmp_path / "on" / "stage2", tmp_path / "off" / "stage2"], [])]
    assert names == ["on/stage2", "off/stage2"]
    with pytest.raises(UserError, match="two runs"):
        sides_of([tmp_path], [])
