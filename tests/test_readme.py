"""Every command that README and the pages of docs show is run, with tiny models, data and pictures where they say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import basic_lite.cli as cli
from basic_lite.tools.shipped import CARD
from tests.support.benchmarks import POPE, POPE_PICTURE, mmbench
from tests.support.gguf import byte_tokenizer
from tests.support.models import write_llava, write_llm, write_vision
from tests.support.runs import write_data

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in ("DATA", "TRAINING", "EXPORT"))]
# Run elsewhere: the first two by every fresh install and .ci/run, the demo by tests/demo, several processes by
# tests/training/test_processes.py, the doctor by tests/tools/doctor.
ELSEWHERE = ("pip ", "basic-lite demo", "basic-lite doctor", "pytest", "accelerate launch ")
MOST_LINES = 200
# Pages that begin where README has trained already.
STAGES = ("basic-lite train recipes/7b_pretrain.yaml", "basic-lite train recipes/7b_qlora.yaml")
AFTER_STAGES = ("TRAINING", "EXPORT")


def shell_lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands(page: Path) -> list[str]:
    return [line for line in shell_lines(page) if not line.startswith(ELSEWHERE)]


def test_readme_is_short_and_has_its_two_commands() -> None:
    lines = shell_lines(README)
    assert lines[0] == "pip install -e . && basic-lite demo"
    assert 'pip install -e ".[test]" && pytest' in lines
    assert len(commands(README)) >= 16
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_cards_are_those_that_the_recipes_name() -> None:
    """Whose memory is rehearsed in ``test_shipped_recipes_fit_the_card_that_they_name``."""
    rows = re.findall(r"^\| (`[^|]*) \| (\d+) GB", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 4
    for names, card in rows:
        heads = [
            (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8") for name in re.findall(r"`(\w+)`", names)
        ]
        own = [int(found["gb"]) for head in heads if (found := CARD.search(head))]
        assert len(own) == len(heads) and max(own) == int(card), names


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the pages name, small."""
    monkeypatch.chdir(tmp_path)
    write_llm(tmp_path / "llm", vocab_size=400)
    byte_tokenizer("gpt-2").save_pretrained(tmp_path / "llm")  # GGUF holds no word-level one
    write_vision(tmp_path / "vision")
    write_llava(tmp_path / "llava")
    write_data(tmp_path, 6)
    questions = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps([{**q, "image": f"images/{q['image']}"} for q in questions]))
    picture = (tmp_path / "images" / "0.png").read_bytes()
    (tmp_path / "picture.jpg").write_bytes(picture)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(picture)
    (tmp_path / "photos" / "captions.csv").write_text("image,caption\n" + "cat.jpg,a red cat\n" * 3)
    mmbench(tmp_path)
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, POPE)))
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / POPE_PICTURE).write_bytes(picture)
    return tmp_path


def small(words: list[str], place: Path) -> list[str]:
    """What makes a command of a page run here."""
    models = [f"model.vision={place / 'vision'}", f"model.llm={place / 'llm'}"]
    # To look for the plan of a tiny model takes longer than to train it.
    manual = [] if any("training.plan" in word for word in words) else ["training.plan=manual"]
    own = ["data.workers=0", "training.device=cpu", "training.max_steps=1", "training.optimizer=adamw_8bit", *manual]
    if words[1] == "data":
        return [f"model.base={place / 'llava'}", *own]
    if words[1] == "clean":
        return ["--yes"]
    if words[1] == "chat":  # a model that has learnt nothing doesn't end its answers
        return ["--max-new-tokens", "4"]
    if words[1] not in ("train", "estimate", "run"):
        return []
    if words[2] == "photos.yaml":
        return own
    data = {"path": str(place / "data.json"), "image_dir": str(place / "images")}
    mine = [word for word in words[3:] if "micro_batch" in word]
    batch = ["training.global_batch=2", *([] if mine else ["training.micro_batch=1"])]
    batch += ["data.held_out=0.5"] if any("held_out" in word for word in words) else []
    return [*models, f"data.train={json.dumps(data)}", *own, *batch]


# The longest pages.
SLOW = {"TRAINING": [pytest.mark.long], "README": [pytest.mark.long], "EXPORT": [pytest.mark.long]}


@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW.get(page.stem, []), id=page.stem) for page in PAGES])
def test_every_command_runs(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the page's order and in one folder, as a reader would."""
    before = STAGES if page.stem in AFTER_STAGES else ()
    for line in [*before, *commands(page)]:
        words = shlex.split(line)
        assert words[0] == "basic-lite", f"{page.name} shows a command that no test knows how to run: {line}"
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words[1:], *small(words, place)])
        output = capsys.readouterr()
        assert not stopped.value.code, f"{line}\n{output.err}"
