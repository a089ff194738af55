"""An evaluation that was broken off goes on where it stopped, and only that one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite import open_run
from basic_lite.cli import main
from basic_lite.errors import NoMemory, UserError
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.score import EvalResult
from basic_lite.training import answer_file
from basic_lite.training.answer_file import OWN, Answers, answers_kept, is_of_another, part_of
from tests.support.runs import quiet

SETTINGS = {"model_sha256": "m", "data_sha256": "d", "limit": None}


def broken_off(place: Path, *answers: tuple[Any, int, str, bool]) -> dict[tuple[str, int], tuple[str, bool]]:
    """An evaluation that fails after some answers; gives those that were there before them."""
    before: dict[tuple[str, int], tuple[str, bool]] = {}
    with suppress(RuntimeError), answers_kept(place, SETTINGS) as kept:
        before |= kept.found
        for number, one in enumerate(answers, 1):
            kept.keep(*one)
            # Each as it comes, after the line of the settings.
            assert len(part_of(place).read_bytes().splitlines()) == 1 + len(before) + number
        raise RuntimeError
    return before


def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    place = tmp_path / "folder" / "p.jsonl"
    assert broken_off(place, (OWN, 3, "it is \ud800 \n red", True), ("no picture", 3, "blue", False)) == {}
    with part_of(place).open("ab") as file:
        file.write(b'{"shown": "own picture", "at": 4, "ans')  # a kill
    assert not is_of_another(place, SETTINGS) and is_of_another(place, {**SETTINGS, "limit": 3})
    again = broken_off(place, (OWN, 4, "green", False))
    assert again == {(OWN, 3): ("it is \ud800 \n red", True), ("no picture", 3): ("blue", False)}
    with answers_kept(place, SETTINGS) as last:
        assert len(last.found) == 3 and last.text(OWN, 4) == "green" and last.text(OWN, 5) is None
    assert not part_of(place).exists()
    broken_off(place)  # nothing was answered, so nothing stays
    assert not list(place.parent.iterdir())
    part_of(place).mkdir()
    with pytest.raises(UserError, match=r"p\.jsonl\.part could not be saved"), answers_kept(place, SETTINGS):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [("at", '"x"'), ("at", "null"), ("at", "1e400"), ("at", "true"), ("shown", "[]"), ("shown", '"other"'),
     ("answer", "null"), ("cut", "1")],
)  # fmt: skip
def test_answers_of_odd_types_are_asked_again(tmp_path: Path, key: str, value: str) -> None:
    place = tmp_path / "p.jsonl"
    broken_off(place, (OWN, 0, "red", False))
    line = {"shown": '"own picture"', "at": "1", "answer": '"a"', "cut": "false"} | {key: value}
    with part_of(place).open("a") as file:
        file.write("{" + ", ".join(f'"{name}": {text}' for name, text in line.items()) + "}\n")
    assert broken_off(place) == {(OWN, 0): ("red", False)}


@pytest.mark.parametrize("text", ["", "[]\n", '{"settings": {}}\n', "\n", '{"settings": {"limit": 3}}'])
def test_a_file_that_is_not_ours_is_of_another(tmp_path: Path, text: str) -> None:
    part_of(tmp_path / "p.jsonl").write_text(text)
    assert is_of_another(tmp_path / "p.jsonl", SETTINGS) is bool(text)


@pytest.mark.long
def test_a_broken_off_evaluation_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = trained.parent.parent / "data.json", tmp_path / "p.jsonl"
    kept = Answers.keep
    asked: list[tuple[str, int]] = []
    most = 7

    def counted(self: Answers, shown: Any, at: int, *rest: Any) -> None:
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append((shown, at))
        kept(self, shown, at, *rest)

    def run(**options: Any) -> EvalResult:
        return evaluate_run(trained, data, batch_size=5, device="cpu", console=quiet(), **options)

    whole = run(out=tmp_path / "whole.jsonl")
    monkeypatch.setattr(answer_file.Answers, "keep", counted)
    with pytest.raises(KeyboardInterrupt):
        run(out=out)
    err = " ".join(capsys.readouterr().err.split())
    assert "7 of 36 answers are kept in" in err and "p.jsonl.part; the same command goes on from there" in err
    assert not out.exists() and len(asked) == 7
    with pytest.raises(UserError, match=r"^--out: .*p\.jsonl\.part has the answers of another evaluation"):
        run(out=out, limit=3)
    asked.clear()
    most = 1000
    again = run(out=out)
    assert "going on: 7 of 36 answers are in p.jsonl.part already" in " ".join(capsys.readouterr().err.split())
    assert len(asked) == 29 == len(set(asked)) and again == whole and not part_of(out).exists()
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_too_little_memory_names_the_option_and_keeps_the_answers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once torch's own error, and once bitsandbytes'; with batches of 4, and of 1."""
    kept, place = Answers.keep, tmp_path / "p.jsonl"
    full: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def failing(self: Answers, shown: Any, at: int, *rest: Any) -> None:
        if len(self.found) == 4:
            raise full
        kept(self, shown, at, *rest)

    def said(batch: int) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(trained), "--data", data, "--out", str(place), "--no-controls", "--batch", str(batch)])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in err
        return " ".join(err.split())

    data = str(trained.parent.parent / "data.json")
    monkeypatch.setattr(answer_file.Answers, "keep", failing)
    text = said(4)
    assert "error: out of memory with 4 questions at once; lower --batch" in text
    assert "4 of 12 answers are kept in" in text and "p.jsonl.part; the same command goes on from there" in text
    full = RuntimeError("cudaErrorMemoryAllocation")
    text = said(1)
    assert "going on: 4 of 12 answers" in text
    assert "out of memory with 1 question at once; lower --max-new-tokens, or give --device cpu" in text
    with pytest.raises(NoMemory, match="out of memory with 3 questions at once; lower batch_size"):
        open_run(trained, "cpu").evaluate(data, batch_size=3, controls=0)


def test_ctrl_c_ends_without_a_traceback(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Answers, *args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(answer_file.Answers, "keep", stop)
    data, part = trained.parent.parent / "data.json", part_of(tmp_path / "p.jsonl")
    part.write_text(json.dumps({"settings": "of another"}) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(trained), "--data", str(data), "--out", str(tmp_path / "q.jsonl"), "--no-controls"])
    assert ended.value.code == 130 and "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
