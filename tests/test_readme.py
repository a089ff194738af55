"""Every command that README shows is run, with tiny models, data and pictures in the places it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import basic_lite.cli as cli
from tests.support.gguf import byte_tokenizer
from tests.support.models import write_llm, write_vision
from tests.support.runs import write_data

README = Path(__file__).resolve().parent.parent / "README.md"
# Run elsewhere: the first two by every fresh install and .ci/run, the demo by tests/test_demo.py.
ELSEWHERE = ("pip ", "basic-lite demo", "pytest", "accelerate launch ")  # the last: tests/training/test_processes.py


def shell_lines() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands() -> list[str]:
    return [line for line in shell_lines() if not line.startswith(ELSEWHERE)]


def test_readme_has_its_two_commands() -> None:
    lines = shell_lines()
    assert lines[0] == "pip install -e . && basic-lite demo"
    assert 'pip install -e ".[test]" && pytest' in lines
    assert len(commands()) >= 8


def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In README's order and in one folder, as a reader would."""
    monkeypatch.chdir(tmp_path)
    write_llm(tmp_path / "llm", vocab_size=400)
    byte_tokenizer("gpt-2").save_pretrained(tmp_path / "llm")  # GGUF holds no word-level one
    write_vision(tmp_path / "vision")
    write_data(tmp_path, 6)
    questions = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps([{**q, "image": f"images/{q['image']}"} for q in questions]))
    (tmp_path / "images" / "0.png").rename(tmp_path / "picture.jpg")
    (tmp_path / "images" / "0.png").write_bytes((tmp_path / "picture.jpg").read_bytes())
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    small = [
        f"model.vision={tmp_path / 'vision'}",
        f"model.llm={tmp_path / 'llm'}",
        f"data.train={json.dumps(data)}",
        "data.workers=0",
        "training.device=cpu",
        "training.global_batch=2",
        "training.max_steps=1",
        "training.optimizer=adamw_8bit",
    ]
    for line in commands():
        words = shlex.split(line)
        assert words[0] == "basic-lite", f"README shows a command that no test knows how to run: {line}"
        if words[1] in ("train", "estimate"):
            mine = [word for word in words[3:] if "micro_batch" in word]
            words += small + ([] if mine else ["training.micro_batch=1"])
        with pytest.raises(SystemExit) as stopped:
            cli.main(words[1:])
        output = capsys.readouterr()
        assert not stopped.value.code, f"{line}\n{output.err}"


def test_data_example_is_valid() -> None:
    from ruamel.yaml import YAML

    from basic_lite.recipe.schema import DataSection

    block = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    section = DataSection.model_validate(YAML(typ="safe").load(block[1])["data"])
    assert isinstance(section.train, list) and section.train[1].columns == {
        "image": "picture",
        "question": "q",
        "answer": "a",
    }
