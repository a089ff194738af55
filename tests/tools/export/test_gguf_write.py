"""All three files together: templates, refusals, and what is left when writing fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf import write_gguf
from basic_lite.tools.export.gguf.notes import as_llama_cpp_sees, picture_difference
from basic_lite.tools.export.gguf.template import Rendered, for_ollama
from tests.support.gguf import byte_tokenizer, piece_tokenizer, read_gguf, write_llava
from tests.support.models import tiny_tokenizer

MARKER = "<__media_aB3x__>"
IMAGE, ASK = {"type": "image"}, {"type": "text", "text": "What is__> this?"}


def silent(line: str) -> None:
    """Takes what is said."""


@pytest.fixture(scope="module", params=["tokenizer", "v1", "plain"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of each conversation format."""
    place = tmp_path_factory.mktemp(request.param)
    return write_llava(place / "model", byte_tokenizer("qwen2"), template=request.param), request.param


@pytest.mark.parametrize("parts", [[IMAGE, ASK], [ASK, IMAGE], [IMAGE, IMAGE, ASK], [IMAGE], [ASK]])
def test_the_template_makes_of_markers_what_transformers_makes_of_parts(
    exported: Any, parts: Any, tmp_path: Path
) -> None:
    folder, _ = exported
    source = read_gguf(write_gguf(folder, tmp_path / "out", say=silent).text)[0]["tokenizer.chat_template"]
    joined = "".join(MARKER if part is IMAGE else part["text"] for part in parts)
    before: list[Any] = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    for turns in ([], before):
        as_text = [*turns, {"role": "user", "content": joined}]
        rendered, _ = render_jinja_template(conversations=[as_text], chat_template=source, add_generation_prompt=True)
        as_parts = [*turns, {"role": "user", "content": parts}]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        truth = str(tokenizer.apply_chat_template(as_parts, tokenize=False, add_generation_prompt=True))
        assert rendered[0] == truth.replace("<image>", MARKER)


def as_ollama_says(template: str, system: str, turns: list[tuple[str, str]]) -> str:
    """What Ollama makes of the few things that these templates use: a round for each question, joined."""
    text = ""
    for number, (question, answer) in enumerate(turns):
        values = {"System": "" if number else system, "Prompt": question, "Response": answer}
        part = template
        for name, value in values.items():
            kept = r"\1" if value else ""
            part = re.sub(rf"\{{\{{ if \.{name} \}}\}}(.*?)\{{\{{ end \}}\}}", kept, part, flags=re.DOTALL)
            part = part.replace(f"{{{{ .{name} }}}}", value)
        text += part
    return text


def test_ollama_writes_the_same_dialogues(exported: Any) -> None:
    folder, kind = exported
    rendered = Rendered(AutoTokenizer.from_pretrained(folder), "<image>")
    found = for_ollama(rendered)
    if kind == "plain":  # it writes no question
        assert found is None
        return
    assert found is not None
    template, usual = found
    turns = [("one?", "yes"), ("two?", "no"), ("three?", "")]
    said = as_ollama_says(template, usual, turns)
    asked: list[Any] = [
        ("user", "one?"),
        ("assistant", "yes"),
        ("user", "two?"),
        ("assistant", "no"),
        ("user", "three?"),
    ]
    truth = rendered.text(*asked)
    after = template.split("{{ .Response }}")[1].removeprefix("{{ end }}")
    assert said.removesuffix(after) == truth
    with_system = as_ollama_says(template, "Be brief.", [("one?", "")])
    assert with_system.removesuffix(after) == rendered.text(("system", "Be brief."), asked[0])


def test_modelfile(exported: Any, tmp_path: Path) -> None:
    folder, kind = exported
    files = write_gguf(folder, tmp_path / "out", say=silent)
    text = files.modelfile.read_text()
    assert text.startswith("FROM ./text.gguf\nFROM ./mmproj.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text and ('TEMPLATE """' in text) == (kind != "plain")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "mmproj.gguf", "text.gguf"]
    assert any("guesses" in note for note in files.notes) == (kind == "plain")
    assert any("right before the question" in note for note in files.notes) == (kind != "plain")


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_space_that_only_the_start_gets_is_in_the_template(tmp_path: Path, scheme: str) -> None:
    """A prompt that starts with a special token, as with BOS, has no such start."""
    tokenizer = piece_tokenizer(tmp_path / "pieces", scheme)
    folder = write_llava(tmp_path / "bos", tokenizer)
    assert not read_gguf(write_gguf(folder, tmp_path / "a", say=silent).text)[0]["tokenizer.chat_template"].startswith(
        "{{-"
    )
    tokenizer.backend_tokenizer.post_processor = None
    folder = write_llava(tmp_path / "plain", tokenizer)
    source = read_gguf(write_gguf(folder, tmp_path / "b", say=silent).text)[0]["tokenizer.chat_template"]
    assert source.startswith('{{- " " -}}') == (scheme == "first")


def test_a_name_that_would_change_the_tokenizer_is_written_otherwise(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "my-Phi-3-run", byte_tokenizer("gpt-2"))
    assert read_gguf(write_gguf(folder, tmp_path / "out", say=silent).text)[0]["general.name"] == "my-Phi 3-run"


@pytest.fixture(scope="module")
def word_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("words") / "model", tiny_tokenizer(), rows=64)


def test_a_refusal_leaves_nothing(word_level: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="word-level"):
        write_gguf(word_level, tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_what_was_there(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "text.gguf").write_text("old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_gguf(exported[0], out, say=silent)
    assert [file.name for file in out.iterdir()] == ["text.gguf"] and (out / "text.gguf").read_text() == "old"
    with pytest.raises(UserError, match="the disk is full"):
        write_gguf(exported[0], tmp_path / "new", say=silent)
    assert not (tmp_path / "new").exists()


def test_without_the_package_the_extra_is_named(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("basic_lite.tools.export.gguf.write.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape('pip install -e ".[gguf]"')):
        write_gguf(exported[0], tmp_path / "out", say=silent)


def test_the_converter_of_llama_cpp_is_called(word_level: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no convert_hf_to_gguf\.py"):
        write_gguf(word_level, tmp_path / "out", llama_cpp=tmp_path, say=silent)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import pathlib, sys\n"
        "folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])\n"
        "assert (folder / 'config.json').is_file() and 'media' in (folder / 'chat_template.jinja').read_text()\n"
        "out.write_text(' '.join(sys.argv[4:]))\n"
    )
    files = write_gguf(word_level, tmp_path / "out", kind="q8_0", llama_cpp=tmp_path, say=silent)
    assert files.text.read_text() == "--outtype q8_0 --model-name model"
    assert "media" not in (word_level / "chat_template.jinja").read_text()
    script.write_text("raise SystemExit('Model FooForCausalLM is not supported')")
    with pytest.raises(UserError, match="Model FooForCausalLM is not supported"):
        write_gguf(word_level, tmp_path / "again", llama_cpp=tmp_path, say=silent)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("fit", ["pad", "square"])
def test_pictures_differ_where_they_are_padded(tmp_path: Path, fit: Any) -> None:
    folder = write_llava(tmp_path / "model", byte_tokenizer("gpt-2"), fit=fit)
    processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    wide, square = Image.fromarray(noise), Image.fromarray(noise[:, :60])
    assert as_llama_cpp_sees(wide, 48, fit == "pad").size == (48, 48)
    assert picture_difference([square], processor, fit == "pad") < 1e-4
    assert (picture_difference([wide], processor, fit == "pad") > 1) == (fit == "pad")
