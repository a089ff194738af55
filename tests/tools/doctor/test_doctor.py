"""The doctor's screen for machines of every kind, and looks that hang, crash or babble."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from basic_lite.cli import main
from basic_lite.sizes import GIB, MIB
from basic_lite.tools.doctor import command
from basic_lite.tools.doctor.command import COLUMNS, LIMITS_S, LINES, can_train, screen
from basic_lite.tools.doctor.findings import findings
from basic_lite.tools.doctor.looks import LOOKS, four_bit_runs
from basic_lite.tools.doctor.probe import MARK, Answer, ask, without_names

MACHINE = {
    "system": "Linux 6.8.0 x86_64",
    "python": "3.12.4",
    "versions": {"torch": "2.13.0+cu130", "transformers": "5.24.0", "triton": "3.7.1", "flash-attn": None},
    "unmet": [],
    "memory_bytes": 64 * GIB,
    "free_memory_bytes": 50 * GIB,
    "cores": 16,
    "shared_bytes": 32 * GIB,
    "settings": {},
}
CARD = {
    "build": "for CUDA 13.0",
    "driver": "580.65.06",
    "driver_cuda": "13.0",
    "unused": None,
    "card": "NVIDIA GeForce RTX 4090",
    "cards": 1,
    "card_bytes": 24 * GIB,
    "free_card_bytes": 23 * GIB,
    "capability": [8, 9],
    "bf16": True,
}
TRITON = {"runs": True, "why": "NVIDIA GeForce RTX 4090", "liger": True, "why_no_liger": ""}
DISK = {"free_bytes": 500 * GIB, "writable": True}
GOOD: dict[str, dict[str, Any]] = {
    "machine": MACHINE,
    "runs_disk": DISK,
    "cache_disk": DISK,
    "torch": CARD,
    "triton": TRITON,
    "four_bit": {"error": 0.093, "on": "cuda"},
    "training": {"module": "loop"},
}


def answers(**changed: dict[str, Any] | str) -> dict[str, Answer]:
    """A good machine's, but for what is named: other facts, or why a look failed."""
    found = {name: Answer(facts, seconds=3) for name, facts in GOOD.items()}
    for name, change in changed.items():
        found[name] = Answer(failure=change) if isinstance(change, str) else Answer(GOOD[name] | change, seconds=3)
    return found


def shown(found: dict[str, Answer], width: int = COLUMNS) -> str:
    lines = screen(found, findings(found), width)
    # A command that is to be copied stays in one line.
    assert all(len(line) <= width or line.strip().startswith("pip install") for line in lines)
    assert width < COLUMNS or len(lines) <= LINES
    return "\n".join(lines)


def test_a_good_machine_lacks_nothing() -> None:
    text = shown(answers())
    assert findings(answers()) == [] and text.endswith("training runs here, and nothing is missing")
    for fact in (
        "3.12.4",
        "for CUDA 13.0",
        "580.65.06",
        "RTX 4090, 24.00 GiB",
        "8.9, bfloat16",
        "Liger's too",
        "16 CPU",
    ):
        assert fact in " ".join(text.split())


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"machine": {"unmet": [("peft", ">=0.20,<0.22", None)]}}, "needed", 'pip install "peft>=0.20,<0.22"'),
        ({"machine": {"unmet": [("peft", "<0.22", "0.30")]}}, "note", "peft 0.30 is none of the versions"),
        ({"torch": "ImportError: libcudart.so.13"}, "needed", "libcudart.so.13"),
        ({"training": "ImportError: no Linear4bit"}, "needed", "no Linear4bit"),
        ({"four_bit": "it crashed (signal 11)"}, "needed", "it crashed (signal 11)"),
        ({"four_bit": {"error": 1.4}}, "needed", "off by 140 %"),
        ({"four_bit": {"error": float("nan")}}, "needed", "quantization.mode=none"),
        ({"torch": {"card": None, "unused": "torch is a build for CPUs"}}, "slow", "torch is a build for CPUs"),
        ({"torch": {"card": None, "driver": None}}, "slow", "no graphics card"),
        ({"torch": {"bf16": False, "capability": [7, 5]}}, "slow", "no bfloat16"),
        ({"torch": {"free_card_bytes": 20 * GIB}}, "note", "hold 4.00 GiB of the card"),
        ({"torch": {"card_bytes": 4 * GIB, "free_card_bytes": 4 * GIB}}, "note", "my_photos_small"),
        ({"triton": {"runs": False, "why": "no C compiler"}}, "slow", "no C compiler"),
        ({"triton": {"liger": False, "why_no_liger": "it isn't installed"}}, "slow", "Liger's kernels, since it isn't"),
        ({"machine": {"shared_bytes": 64 * MIB}}, "note", "--shm-size=4g"),
        ({"machine": {"memory_bytes": 4 * GIB}}, "note", "4.00 GiB of memory"),
        ({"machine": {"settings": {"HF_HUB_OFFLINE": "1"}}}, "note", "HF_HUB_OFFLINE"),
        ({"runs_disk": {"writable": False}}, "needed", "output=FOLDER"),
        ({"runs_disk": {"free_bytes": 100 * MIB}}, "needed", "100 MiB free"),
        ({"runs_disk": {"free_bytes": 2 * GIB}}, "note", "2.00 GiB free, and 4 GiB are safe"),
        ({"cache_disk": {"free_bytes": 9 * GIB}}, "note", "HF_HOME=FOLDER"),
        ({"cache_disk": "no answer in 30 s"}, "note", "no answer in 30 s"),
    ],
)
def test_what_is_missing_is_said_with_what_mends_it(changed: dict[str, Any], kind: str, words: str) -> None:
    found = findings(answers(**changed))
    assert [one.kind for one in found] == [kind] and words in found[0].text
    assert can_train(found) == (kind != "needed")
    assert found[0].text[:30] in shown(answers(**changed))


@pytest.mark.parametrize(
    "changed",
    [{"torch": {"card": None}}, {"triton": {"runs": False, "why": "none"}}, {"machine": {"unmet": [("a", "", None)]}}],
)
def test_the_verdict_is_a_whole_sentence(changed: dict[str, Any]) -> None:
    lines = shown(answers(**changed), 200).splitlines()
    verdict = next(line for line in lines if line.startswith("verdict"))
    assert "below" in verdict and not verdict.endswith(":")


def test_one_screen_however_much_is_wrong() -> None:
    unmet = [(f"package-{n}", ">=1.0,<2.0", None) for n in range(40)]
    every = answers(machine={"unmet": unmet, "shared_bytes": MIB}, torch={"unused": "x" * 900}, four_bit="y" * 900)
    assert "and more" in shown(every) and "package-0 isn't installed" in shown(every)
    shown(every, 40)
    nothing = {name: Answer(failure="no answer in 30 s") for name in LOOKS}
    assert set(LIMITS_S) == set(LOOKS) == set(GOOD)
    assert "can't run here" in shown(nothing) and "the packages can't be looked at" in shown(nothing)
    assert not can_train(findings(nothing))


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_look_that_hangs_crashes_or_babbles() -> None:
    start = time.monotonic()
    assert ask("x", 1, script("import time; time.sleep(60)")).failure == "no answer in 1 s"
    assert time.monotonic() - start < 20
    if sys.platform != "win32":
        assert "signal 9" in ask("x", 60, script("import os; os.kill(os.getpid(), 9)")).failure
    assert ask("x", 60, script("raise ValueError('boom')")).failure == "ValueError: boom"
    assert "without a word" in ask("x", 60, script("pass")).failure
    assert "can't be started" in ask("x", 60, ["/no/such/program"]).failure
    assert ask("x", 60, script(f"print('noise'); print('{MARK}' + '[1]'); print('more')")).facts == [1]


def test_the_doctor_needs_no_package_that_may_be_broken() -> None:
    """It is to say that one is."""
    blocked = (
        "import sys\nfor name in ('torch', 'packaging', 'psutil', 'numpy', 'pydantic'): sys.modules[name] = None\n"
    )
    work = "from basic_lite.tools.doctor.command import doctor\nimport basic_lite.cli"
    assert "without a word" in ask("x", 60, script(blocked + work)).failure


def test_real_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the folder was imported')")
    machine = ask("machine", 120)
    assert machine.failure == "" and machine.facts["versions"]["torch"] and machine.facts["memory_bytes"] > GIB
    assert ask("runs_disk", 120).facts["writable"] is True
    assert 0.05 < four_bit_runs()["error"] < 0.15


def test_no_names_of_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/jane")
    monkeypatch.setenv("USER", "jane")
    text = "can't read /data/people/jane/x, /home/bob/y, C:\\Users\\Eve\\z or /scratch/jane/t"
    assert without_names(text) == "can't read ~/x, ~/y, ~\\z or /scratch/USER/t"


@pytest.mark.parametrize(("failure", "status"), [("", 0), ("ImportError: x", 1)])
def test_exit_status(
    failure: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers(**({"torch": failure} if failure else {}))
    monkeypatch.setattr(command, "ask", lambda name, most_s: found[name])
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert (stopped.value.code or 0) == status and "verdict" in capsys.readouterr().out


@pytest.mark.soak
def test_the_whole_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    out = capsys.readouterr().out
    assert not stopped.value.code and len(out.splitlines()) <= LINES and os.path.expanduser("~") not in out
