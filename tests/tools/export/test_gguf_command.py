"""GGUF files by the command: what is refused early, what is measured, what the card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.tools.export import command
from basic_lite.tools.export.command import export
from basic_lite.tools.export.gguf import write
from basic_lite.tools.export.gguf.notes import gelu_difference
from tests.support.bundles import random_run
from tests.support.gguf import byte_tokenizer
from tests.support.models import write_llm, write_vision
from tests.support.runs import quiet


def run_with_gguf_tokenizer(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    write_llm(folder / "llm", vocab_size=400)
    byte_tokenizer("gpt-2").save_pretrained(folder / "llm")
    write_vision(folder / "vision")
    return random_run(folder, {"data.template": "v1", "data.max_length": 200} | (changes or {}))


def test_gguf_files_lie_in_the_folder_and_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = run_with_gguf_tokenizer(tmp_path), tmp_path / "my-model"
    assert export(run, out, samples=2, gguf="q8_0", console=quiet())
    assert {path.name for path in (out / "gguf").iterdir()} == {"text.gguf", "mmproj.gguf", "Modelfile"}
    report = json.loads((out / "export.json").read_text())
    measured = report["check"]["llama_cpp"]
    # The pictures are noise of several shapes: what differs is the colour and the border of the padding.
    assert 0 < measured["pixels"] < 60 and 0 < measured["projector"] < 1e-2
    card, said = (out / "README.md").read_text(), capsys.readouterr().err
    for difference in report["gguf_differs"]:
        assert f"- {difference}" in card and f"GGUF: {difference}" in said.replace("\n", " ")
    assert any("grey levels" in difference for difference in report["gguf_differs"])
    assert "llama-server" in card and "ollama create" in card
    assert b"my-model" in (out / "gguf" / "text.gguf").read_bytes()[:2000]  # not the scratch folder's name


def test_what_gguf_lacks_is_refused_before_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("weights were written")

    monkeypatch.setattr(command, "write_weights", never)
    run = random_run(tmp_path)
    for options, message in (({}, "WordLevel"), ({"llama_cpp": tmp_path}, "has no convert_hf_to_gguf.py")):
        with pytest.raises(UserError, match=message):
            export(run, tmp_path / "out", samples=0, gguf="f16", console=quiet(), **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e .*gguf"):
        export(run, tmp_path / "out", samples=0, gguf="f16", console=quiet())


def test_a_converter_without_gguf_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "run", "out", "--llama-cpp", str(tmp_path)])
    assert stopped.value.code == 2 and "add --gguf" in capsys.readouterr().err


@pytest.mark.parametrize("select", ["default", "full"])
def test_the_effect_of_the_other_gelu_is_that_on_the_projector(tmp_path: Path, select: str) -> None:
    """Against the projector's own output, its activation exchanged."""
    run, out = random_run(tmp_path, {"model.vision_feature_select": select}), tmp_path / "out"
    export(run, out, samples=0, console=quiet())
    model = AutoModelForImageTextToText.from_pretrained(out)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        exact = torch.cat(list(model.model.get_image_features(pixels).pooler_output))
        model.model.multi_modal_projector.act = nn.GELU(approximate="tanh")
        other = torch.cat(list(model.model.get_image_features(pixels).pooler_output))
    expected = ((other - exact).norm() / exact.norm()).item()
    assert gelu_difference(model, pixels) == pytest.approx(expected, rel=1e-3)
