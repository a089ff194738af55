"""What ``basic-lite chat`` says of a MODEL that is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.errors import UserError
from basic_lite.tools.chat.command import chat


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("my cat.png", 'my cat.png is a picture; give the model first: basic-lite chat MODEL "my cat.png"$'),
        ("gone/cat.png", "is a picture; give the model first"),
        ("photo", "photo is a picture; give the model first"),
        ("photos", "photos is a folder of pictures; give the model first: basic-lite chat MODEL photos/a.jpg"),
        ("pets", r"pets is a folder of pictures; did you mean runs/pets\? Give the model first: basic-lite chat MODEL"),
        ("model.gguf", "GGUF files are for llama.cpp and Ollama"),
        ("exported/model.safetensors", "give exported$"),
        ("run/final/adapter/adapter_model.safetensors", "give run/final$"),
        ("notes.txt", r"a model is a folder; give a run folder \(runs/NAME\)"),
    ],
)
def test_a_file_is_no_model(model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("exported/config.json", "run/final/manifest.json", "exported/model.safetensors", "notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    Path("run/final/adapter").mkdir()
    Path("run/final/adapter/adapter_model.safetensors").write_text("{}")
    for name in ("my cat.png", "photo"):
        Image.new("RGB", (4, 4)).save(name, "PNG")
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.jpg")
    shutil.copytree("photos", "pets")
    shutil.copytree("run", "runs/pets")
    with pytest.raises(UserError, match=says):
        chat(model, ["exported", "what is it?"])
