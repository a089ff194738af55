"""Does the model look? Which questions are asked again, with what, and what is said of the scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record, Turn
from basic_lite.scoring.controls import asked_again, control_sample, other_images, others_of
from basic_lite.scoring.looking import Controls, controls_of
from basic_lite.scoring.prediction import Prediction
from basic_lite.scoring.questions import Question, without_picture
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.score import EvalResult, merged, score_table
from tests.support.benchmarks import POPE, mmbench
from tests.support.runs import quiet


def question(at: int, picture: str = "", circle: str = "", answer: str | None = "x") -> Question:
    images = (ImageRef(picture, "nowhere"),) if picture else ()
    return Question(Record(at, "", "s", images, (Turn("human", "?"),), answer=answer), circle=circle)


def predictions(*pairs: tuple[float, float, float]) -> list[Prediction]:
    """Of each: score with its own picture, with another, with none."""
    one = Prediction(1, "", "", ["a.png"], "?", "x", "x", True, False, False)
    return [
        replace(one, score=own, correct=own > 0.5, score_other_picture=other, score_no_picture=none)
        for own, other, none in pairs
    ]


def test_the_other_picture_is_another_one_by_content(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
        shutil.copy(tmp_path / f"{name}.png", tmp_path / f"copy of {name}.png")
    names = [f"{copy}{name}.png" for name in "abc" for copy in ("", "copy of ")]
    records = [Record(n, "", "s", (ImageRef(name, str(tmp_path)),), ()) for n, name in enumerate(names)]
    for seed in range(8):
        shown = other_images(records, seed)
        assert all(shown(n)[0].name.split(".")[0][-1] != names[n].split(".")[0][-1] for n in range(6))
    assert [others_of(records, range(6))[n] for n in range(6)] == [other_images(records, 0)(n) for n in range(6)]
    assert others_of(records, [0, 1]) == {}  # one picture under two names
    assert others_of(records, [0, 4]).keys() == {0, 4}


def test_pictures_are_dealt_out_once() -> None:
    records = [Record(n, "", "s", (ImageRef(f"{n}.png", "nowhere"),), ()) for n in range(40)]
    dealt = others_of(records, range(40))
    assert sorted(images[0].name for images in dealt.values()) == sorted(f"{n}.png" for n in range(40))
    assert all(images != records[n].images for n, images in dealt.items())


def test_the_sample_is_fixed_and_keeps_rotations_together() -> None:
    asked = [question(n, f"{n}.png") for n in range(30)]
    assert control_sample(asked, 30) == list(range(30)) and control_sample(asked, 0) == []
    sample = control_sample(asked, 10)
    assert len(sample) == 10 and sample == sorted(sample) == control_sample(asked, 10) != list(range(10))
    assert control_sample([question(0), question(1, "a.png", answer=None), question(2, "a.png")], 9) == [2]
    turned = [question(n, f"{n // 3}.png", circle=str(n // 3)) for n in range(30)]
    sample = control_sample(turned, 10)
    assert len(sample) == 9 and all(sample[n] // 3 == sample[n // 3 * 3] // 3 for n in range(9))


def test_the_note_says_what_is_asked_again() -> None:
    def again(*questions: Question, template: str = "v1", most: int = 9) -> tuple[int, str]:
        found = asked_again(questions, most, SimpleNamespace(template=template))  # type: ignore[arg-type]
        return found.answers, found.note.removesuffix(" (--no-controls: once)")

    two = question(0, "a.png"), question(1, "b.png")
    assert again(*two) == (4, "each question is asked three times: with its picture, with another and without one")
    assert again(*two, template="plain") == (2, "each question is asked twice: with its picture and with another")
    same = question(0, "a.png"), question(1, "a.png"), question(2)
    assert again(*same) == (2, "2 of the 3 questions are asked twice: with its picture and without one")
    assert again(*same[1:]) == (1, "1 of the 2 questions is asked twice: with its picture and without one")
    assert again(*same, template="plain") == again(*two, most=0) == (0, "")
    pair = question(2, "a.png")
    pair = replace(pair, record=replace(pair.record, images=pair.record.images * 2))
    assert again(*two, pair) == (
        5,
        "each question is asked three times: with its picture, with another (2 of them) and without one",
    )


def test_a_question_alone_is_as_if_it_never_had_a_picture() -> None:
    turns = (Turn("system", "see <image>"), Turn("human", "<image>\nwhat is it ?"), Turn("gpt", "a <image>"))
    bare = without_picture(Record(1, "", "s", (ImageRef("a.png"),), turns))
    assert bare.images == () and [turn.text for turn in bare.turns] == ["see <image>", "what is it ?", "a <image>"]


def test_what_is_said() -> None:
    def said(*pairs: tuple[float, float, float]) -> list[str]:
        found = controls_of(predictions(*pairs))
        assert isinstance(found, Controls)
        return list(found.lines())

    head, looks = said(*[(1, 0, 0)] * 20 + [(0, 0, 0)] * 20)
    # Wilson's interval of 20 of 40 is .352 to .648, that of 0 of 40 ends at .088.
    assert head == "with its own picture 50 % [35, 65]; 0 % [0, 9] with another picture; 0 % [0, 9] without one"
    assert looks.startswith("it looks at the picture: its own one is worth +50 points [+3")
    _, blind, alone = said(*[(1, 1, 1)] * 20 + [(0, 1, 0)] * 2 + [(1, 0, 1)] * 3 + [(0, 0, 0)] * 9)
    assert blind.startswith("it may not look at the picture: its own one instead of another changes the score by +3 ")
    assert alone.startswith("the questions alone may do as well (+0 points [-8, +8])")
    # Better by 20 points, and yet it can't be told: nothing says that the questions alone are as good.
    assert said(*[(1, 0, 0)] * 3 + [(1, 0, 1)] * 4 + [(0, 0, 0)] * 9)[2].startswith(
        "the questions alone may do as well (+19"
    )
    misled = said(*[(0, 0, 1)] * 12 + [(1, 0, 1)] * 8)[2]
    assert misled.startswith("the questions alone do better (-60 points") and "away from the answers" in misled
    none_right = said(*[(0, 0, 0)] * 20)
    assert none_right[1:] == ["no answer is right, so it can't be told whether it looks at the picture"]
    assert "too few to say" in said(*[(1, 0, 0)] * 15)[1]
    assert "may not belong" in said(*[(0, 1, 0)] * 20)[1]
    assert controls_of([replace(one, score=None) for one in predictions((1, 0, 0))]) is None
    one_picture = [replace(one, score_other_picture=None) for one in predictions(*[(1, 0, 0)] * 20)]
    found = controls_of(one_picture)
    assert found is not None and "there is no other picture to ask with" in list(found.lines())[1]
    partly = [*predictions(*[(1, 0, 0)] * 20), *[replace(one_picture[0], score_no_picture=None)] * 30]
    part = controls_of(partly)
    assert part is not None and next(part.lines()).endswith("(20 of the 50 questions, drawn with seed 0)")


def test_a_circle_is_right_only_if_each_of_its_rotations_is() -> None:
    rows = predictions((1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))
    circles = [replace(one, circle=name, groups=["g"]) for one, name in zip(rows, "aabb", strict=True)]
    assert [(one.score, one.correct, one.score_other_picture) for one in merged(circles)] == [
        (1, True, 0),
        (0, False, 1),
    ]
    result = EvalResult(circles, metric="choice")
    assert result.counts == {"g": 2, "all": 2} and result.score == 0.5 and result.exact_match is None
    assert "right only if it is right in every order" in score_table(result).title
    alone = [replace(one, circle="", question_type="all") for one in rows]
    assert EvalResult(alone).counts == {"all": 4}  # a type of that name isn't counted twice


def test_a_model_that_looks_is_told_from_the_pictures(trained: Path, tmp_path: Path) -> None:
    folder, console = trained.parent.parent, quiet()
    result = evaluate_run(trained, folder / "data.json", out=tmp_path / "p.jsonl", console=console, device="cpu")
    colours = {one.images[0]: one.prediction for one in result.predictions}
    assert all(one.other_picture in colours.values() and one.no_picture is not None for one in result.predictions)
    controls = result.controls
    assert controls is not None and controls.other is not None and controls.none is not None
    # 12 pictures of 3 colours: another one has the same colour in 3 of 11 cases, had it been drawn freely.
    assert controls.own.share >= 0.9 and controls.other.share <= 0.75 and controls.none.share <= 0.75
    summary = json.loads((tmp_path / "p.summary.json").read_text())
    assert summary["controls"]["own_picture"]["n"] == 12 and summary["settings"]["controls"] == 500
    assert "with its own picture" in console.file.getvalue()  # type: ignore[attr-defined]
    bare = evaluate_run(
        trained, folder / "data.json", out=tmp_path / "q.jsonl", controls=0, console=quiet(), device="cpu"
    )
    assert bare.controls is None and "controls" not in json.loads((tmp_path / "q.summary.json").read_text())
    assert [one.prediction for one in bare.predictions] == [one.prediction for one in result.predictions]


def test_benchmarks_run_through(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """POPE's pictures lie in no folder near it, but in the recipe's."""
    images = trained.parent.parent / "images"
    rows = [{**row, "image": f"{n}.png"} for n, row in enumerate(POPE)]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    asked = evaluate_run(trained, tmp_path / "coco_pope_random.json", out=tmp_path / "p.jsonl", console=quiet())
    assert asked.metric == "yes_no" and asked.counts == {"random": 2, "all": 2} and asked.max_new_tokens == 32
    summary = json.loads((tmp_path / "p.summary.json").read_text())
    assert summary["metric"] == "yes_no" and summary["score"] == asked.accuracy and "exact_match" not in summary
    assert summary["trained_on"]["n"] == 2 and "right" not in summary["trained_on"]
    assert summary["figures"]["yes ratio"]["n"] == 2 and summary["settings"]["benchmark"] == "pope"
    err = " ".join(capsys.readouterr().err.split())
    assert "questions of pope" in err and f"pictures: {images}" in err and "each question is asked three times" in err
    circular = evaluate_run(trained, mmbench(tmp_path), out=tmp_path / "m.jsonl", controls=3, console=quiet())
    assert len(circular.predictions) == 5 and circular.counts["all"] == 2
    assert sum(one.no_picture is not None for one in circular.predictions) in (2, 3)
