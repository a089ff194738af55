"""What a beginner types instead of what a command takes: one message that says how it is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from basic_lite import cli
from tests.support.fuzzing import MENDS

# In a folder that holds the runs `runs/a` and `runs/b`, pictures in `photos`, and a file `q.csv`.
SAID = {
    "eval runs/a q.csv": "`eval` has no place for q.csv; questions are named with --data; write basic-lite eval runs/a "
    "--data q.csv",
    "eval runs/a gone.csv": "write basic-lite eval runs/a --data gone.csv",
    "eval q.csv runs/a": "the run goes first, and questions are named with --data; write basic-lite eval runs/a --data",
    "eval runs/a runs/b": "it takes one run; give the command again for each: basic-lite eval runs/b --data FILE",
    "eval runs/a held_out": "write basic-lite eval runs/a --held-out",
    "eval runs/a photos/c.png 'what is it?'": 'basic-lite chat runs/a photos/c.png "what is it?"',
    "eval runs/a --data q.csv more.csv": "`eval` has no place for more.csv; leave it out",
    "eval runs/a seed=3": "`eval` has no place for seed=3; leave it out",
    "eval runs/a --held-out more.csv": "`eval` has no place for more.csv; leave it out",
    "eval runs/a": "give --data FILE, or --held-out",
    "eval runs/a --data q.csv --held-out": "give --data FILE, or --held-out",
    "report runs/a page.html": "the page is report.html in the run's folder; leave it out",
    "report runs/a runs/b": "give the command again for each: basic-lite report runs/b",
    "text-probe runs/a runs/b": "give the command again for each: basic-lite text-probe runs/b",
    "runs runs/a runs/b": "give that which holds them all: basic-lite runs runs",
    "runs q.csv": "q.csv is a file; give the folder that holds your runs",
    "clean q.csv": "q.csv is a file; give the folder that holds your runs",
    "keys training lora": "give the command again for each: basic-lite keys lora",
    "export runs/a out gguf": "write basic-lite export runs/a out --gguf",
    "export runs/a out q8_0": "write basic-lite export runs/a out --gguf --gguf-type q8_0",
    "export runs/a out runs/b": "give the command again for another run",
    "doctor runs/a": "`doctor` has no place for runs/a; leave it out",
    "demo photos": "it has pictures of its own; make a recipe for yours: basic-lite data photos",
    "data photos new.yaml": "a file for the recipe is named with --out; write basic-lite data photos --out new.yaml",
    "data photos q.csv": "photos and q.csv are named, and one place is taken; name one",
    "check photos new.yaml": "a recipe is named with --recipe; write basic-lite check photos --recipe new.yaml",
    "estimate demo_stage1 24": "is named with --gpu; write basic-lite estimate demo_stage1 --gpu 24",
    "estimate demo_stage1 rtx4090": "is named with --gpu; write basic-lite estimate demo_stage1 --gpu rtx4090",
    "compare runs/a page.html": "page.html is no run; if the page is meant, name it with --out page.html",
    "chat photos/c.png why runs/a": "photos/c.png is a picture; give the model first: basic-lite chat",
    "chat runs/a https://a.b/c.png why": "https://a.b/c.png is an address, and pictures are files; download it",
    "chat runs/a q.csv": "q.csv is a file of data and no picture; give it with --data: `basic-lite eval` asks",
    "inspect runs/a gone.json": "gone.json is a file of data and no picture; give it with --data",
    "inspect runs/a 'what is it?'": 'and asks nothing, and what is it? is none; ask with basic-lite chat runs/a "what',
    "chat runs/a video.mp4 why": "(it is a video); save a frame of it as JPEG, or take another picture",
    "chat runs/a video.mkv why": "(it is a video); save a frame of it as JPEG, or take another picture",
    "chat runs/a video.avi why": "(it is a video); save a frame of it as JPEG, or take another picture",
    "chat runs/a half.webp why": "half.webp' can't be decoded (could not create decoder object); fetch it again, or",
    "chat runs/a pages.jpg why": "(it is a PDF); save its pages as JPEG, or take another picture",
    "chat runs/a --image photos/c.png why": "Pictures stand behind the model, and then the question, without options.",
    "doctor --dry-run": "No such option: --dry-run\nSee `basic-lite doctor --help`.",  # nothing of `clean`
    "clean --dry-run": "`clean` shows what would go, and asks before it deletes.",
    "report runs/a --out x.html": "The page is report.html in the run's folder.",
    "export runs/a": "Missing argument 'out': folder to write; it must not exist yet.",
    "eval --data q.csv": "Missing argument 'run': run folder or bundle.",
    "predict runs/a": "there is no command 'predict'; did you mean 'chat'?",
    "score runs/a": "there is no command 'score'; did you mean 'eval'?",
    "help": "there is no command 'help'; did you mean '--help'?",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "final").mkdir(parents=True)
        (tmp_path / "runs" / name / "final" / "manifest.json").write_text("{}")
        (tmp_path / "runs" / name / "predictions_q_final.jsonl").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "c.png").touch()
    (tmp_path / "q.csv").write_text("image,question,answer\nc.png,what is it?,a cat\n")
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41")
    (tmp_path / "video.mkv").write_bytes(b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01")
    (tmp_path / "video.avi").write_bytes(b"RIFF\x24\0\0\0AVI LIST")
    (tmp_path / "half.webp").write_bytes(b"RIFF\x24\0\0\0WEBPVP8 ")
    (tmp_path / "pages.jpg").write_bytes(b"%PDF-1.7\n%")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "says"), SAID.items())
def test_it_says_how_that_is_written(typed: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(shlex.split(typed))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert says in err and err.startswith("error: ") and MENDS.search(err)


@pytest.mark.parametrize("word", ["\0", "a" * 5000, "\x1b[31m", "\ud800", "~", ".."])
def test_odd_words_too_many_are_one_short_message(word: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval runs/a", "report runs/a", "runs runs", "keys a", "export runs/a out", "demo", "doctor"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command.split(), word])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and len(err) < 1000 and "\x1b" not in err and MENDS.search(err), err
