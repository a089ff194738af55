"""``inspect``: a model of transformers against its hidden states, a run against its own log, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from basic_lite import cli
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.model.families import FAMILIES
from basic_lite.recipe.schema import SourceSection
from basic_lite.supervision.health import HealthMeter
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.premise import nearest_by_place
from basic_lite.tools.inspect import of_run
from basic_lite.tools.inspect.command import inspect
from basic_lite.tools.inspect.conversations import QUESTION, Conversations
from basic_lite.tools.inspect.look import Inspection
from basic_lite.tools.inspect.of_folder import open_model, read_family
from tests.support.runs import log_of, run, write_data
from tests.support.vlm_folders import (
    LACKED,
    LACKING,
    PROCESSED,
    require_processor,
    write_llava_with_template,
    write_vlm,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")


def looked(*words: Any, width: int = 80, **options: Any) -> tuple[Inspection, str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    found = inspect(str(words[0]), [str(word) for word in words[1:]], console=console, device="cpu", **options)
    return found, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA as transformers saves it, and twenty records."""
    folder = tmp_path_factory.mktemp("inspect")
    write_llava_with_template(folder / "llava")
    write_data(folder, 20)
    return folder


def test_a_saved_llava_equals_its_hidden_states(place: Path) -> None:
    _, family = read_family(str(place / "llava"))
    opened = open_model(str(place / "llava"), family, CPU, "auto", "none")
    records = load_records(SourceSection(path=str(place / "data.json"), image_dir=str(place / "images")), root=place)
    batch = Conversations(opened).sample(records[4])
    supervision = opened.supervision(print)
    layout = find_layout(batch, opened.parts.image_token_id, "all")
    with torch.no_grad():
        _, (rows,) = nearest_by_place(supervision, batch, layout, HealthMeter(6, 1.0), each_layer=True)
        states = opened.parts.model(**batch, output_hidden_states=True, use_cache=False).hidden_states
    where = (batch["input_ids"][0] == opened.parts.model.config.image_token_id).nonzero().flatten()
    naive = [state[0, where] for state in states]
    torch.testing.assert_close(rows[:4], torch.stack(naive[:4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[5], (naive[1] + 4 * naive[2]) / 5, atol=1e-5, rtol=0)
    text = opened.tokenizer.decode(batch["input_ids"][0])
    assert "what colour is it ?" in text and "it is blue" in text


_MEASURED = {"supervision.preset": "measured", "supervision.gate": False}


@pytest.mark.parametrize("changes", [{}, pytest.param(_MEASURED, marks=pytest.mark.soak)])
def test_a_run_equals_its_own_curve(changes: dict[str, Any], tmp_path: Path) -> None:
    write_data(tmp_path, 20)
    own = {"supervision.refinement_batches": 3, "training.max_steps": 2, "data.held_out": 0.4, **changes}
    folder = run(tmp_path, own)
    logged = [line["refinement"] for line in log_of(folder) if "refinement" in line][-1]
    found, text = looked(folder)
    assert found.look is not None
    curve = found.look.curve.to_dict()
    for key in ("own", "control", "score"):
        assert curve[key] == pytest.approx(logged[key], abs=1e-5)
    assert curve["gains"] == [pytest.approx(gain, abs=1e-5) for gain in logged["gains"]]
    assert (curve["samples"], curve["places"]) == (logged["samples"], logged["places"])
    for key, values in curve["health"].items():
        assert values == pytest.approx(logged["health"][key], abs=1e-5)
    assert f"{curve['samples']} samples of the run's own data" in text and "model.start=" in text


@pytest.mark.soak
def test_a_run_on_other_data_and_on_pictures(tmp_path: Path) -> None:
    folder = run(tmp_path, {"training.max_steps": 1})
    write_data(tmp_path / "other", 17)
    found, _ = looked(folder, data=tmp_path / "other" / "data.json", image_dir=tmp_path / "other" / "images", samples=5)
    assert found.look is not None and found.look.curve.samples == 8, "batches of four, as a run counts"
    found, text = looked(folder, *sorted((tmp_path / "other" / "images").glob("1*.png"))[:3])
    assert found.look is not None and found.look.curve.samples == 3
    assert found.look.curve.verdict == "can't tell" and "own description" in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80])
def test_the_report_has_room(width: int, place: Path) -> None:
    found, text = looked(place / "llava", width=width, data=place / "data.json", image_dir=place / "images")
    # A command that is to be copied stays in one line.
    assert all(cell_len(line) <= width or line.startswith("basic-lite train") for line in text.splitlines())
    assert "…" not in text
    assert found.look is not None and found.tokens == (4, 4)
    words = " ".join(text.split())
    train = "today? yes: basic-lite train RECIPE model.base="
    for part in ("LLaVA-1.5", "model.multi_modal_projector", "20 samples of data.json", train):
        assert part in words
    assert found.look.curve.summary() in words


def test_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(place / "images" / f"{n}.png") for n in range(2)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", str(place / "llava"), *pictures, "--device", "cpu", "--json"])
    assert not stopped.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "can't tell" and found["curve"]["samples"] == 2 and len(found["text_attention"]) == 4
    assert found["model"]["layers"] == 4 and "own description" in found["samples"]


# The others' processors are slower to make than they differ.
PLAIN = {"Qwen2.5-VL", "PaliGemma"}
FAMILY = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] * (name not in PLAIN)) for name in [*PROCESSED, "SmolVLM"]]
)
def test_every_family_goes_through_its_own_processor(name: str, tmp_path: Path) -> None:
    require_processor(name)
    write_vlm(tmp_path / "vlm", name)
    write_data(tmp_path, 3)
    for file in (tmp_path / "images").iterdir():
        Image.open(file).resize((32, 32)).save(file)
    found, text = looked(tmp_path / "vlm", data=tmp_path / "data.json", image_dir=tmp_path / "images")
    assert found.look is not None and found.look.curve.samples == 3
    assert name in text and f"today? no: {FAMILY[name].not_trained[:20]}" in " ".join(text.split())
    assert found.tokens == ({**PROCESSED, **LACKED}[name].count,) * 2
    assert any(mass is not None and 0 < mass < 1 for mass in found.look.attention)


class Heard:
    """A processor that keeps the texts it is given."""

    def __init__(self, own: Any) -> None:
        self.own, self.tokenizer, self.image_token = own, own.tokenizer, own.image_token
        self.texts: list[str] = []

    def __call__(self, **words: Any) -> Any:
        self.texts.append(words["text"])
        return self.own(**words)


def test_a_prompt_after_a_picture_starts_without_a_line_break(tmp_path: Path) -> None:
    """As a PaliGemma was trained: its processor puts pictures and <bos> before whatever it is given."""
    write_vlm(tmp_path / "vlm", "PaliGemma")
    write_data(tmp_path, 1)
    _, family = read_family(str(tmp_path / "vlm"))
    opened = open_model(str(tmp_path / "vlm"), family, CPU, "auto", "none")
    processor = Heard(opened.processor)
    source = SourceSection(path=str(tmp_path / "data.json"), image_dir=str(tmp_path / "images"))
    record = load_records(source, root=tmp_path)[0]
    made = Conversations(replace(opened, processor=processor))
    made.sample(record)
    made.described(record.images[0])
    assert processor.texts == ["<image>what colour is it ?", f"<image>{QUESTION}"]


@pytest.mark.parametrize("name", list(LACKING))
def test_what_a_processor_lacks_is_said(name: str, place: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(LACKING[name]):
        pytest.skip(f"{LACKING[name]} is installed")
    write_vlm(tmp_path, name)
    with pytest.raises(UserError, match=LACKING[name]):
        looked(tmp_path, data=place / "data.json", image_dir=place / "images")


@pytest.mark.parametrize("name", ["Qwen3-VL", "LFM2-VL", "Qwen3.5"])
def test_without_pictures_only_the_configuration_is_read(name: str, tmp_path: Path) -> None:
    write_vlm(tmp_path, name)
    for file in tmp_path.iterdir():
        if file.name != "config.json":
            file.unlink()
    found, text = looked(tmp_path)
    assert found.look is None and found.facts.layers == 4 and found.facts.width == 32
    assert found.facts.softmax_layers == (4 if name == "Qwen3-VL" else 2)
    assert ("2 of 4 layers" in text) == (name != "Qwen3-VL") and "today? no:" in text


def test_nf4(place: Path) -> None:
    _, family = read_family(str(place / "llava"))
    opened = open_model(str(place / "llava"), family, CPU, "auto", "nf4")
    kinds = {place: type(module).__name__ for place, module in opened.parts.model.named_modules()}
    assert kinds["model.language_model.layers.0.self_attn.q_proj"] == "Linear4bit"
    assert kinds["model.multi_modal_projector.linear_1"] == kinds["lm_head"] == "Linear"


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    llava, data, picture = place / "llava", place / "data.json", place / "images" / "0.png"
    with pytest.raises(UserError, match="one of both"):
        looked(llava, picture, data=data)
    with pytest.raises(UserError, match="belong to --data"):
        looked(llava, picture, samples=3)
    with pytest.raises(UserError, match="belong to --data"):  # it looks at nothing, so of nothing there can be three
        looked(llava, samples=3)
    with pytest.raises(UserError, match="give the model first: basic-lite inspect MODEL"):
        looked(picture)
    with pytest.raises(UserError, match="there is no folder"):
        looked(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip", "vision_config": {}, "text_config": {}}))
    with pytest.raises(UserError, match="a blip model: its configuration has vision_config, text_config"):
        looked(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="can't read the configuration"):
        looked(tmp_path)


def test_a_model_without_a_template_is_refused(place: Path, tmp_path: Path) -> None:
    write_llava_with_template(tmp_path / "llava")
    (tmp_path / "llava" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template for pictures"):
        looked(tmp_path / "llava", data=place / "data.json", image_dir=place / "images")


def test_a_template_for_texts_alone(place: Path, tmp_path: Path) -> None:
    """It gives what a template with pictures gives, on pictures and on data."""
    write_llava_with_template(tmp_path / "llava")
    template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    (tmp_path / "llava" / "chat_template.jinja").write_text(template)
    found, _ = looked(tmp_path / "llava", place / "images" / "0.png")
    assert found.look is not None and found.look.curve.samples == 1
    options: dict[str, Any] = {"data": place / "data.json", "image_dir": place / "images", "samples": 3}
    found, _ = looked(tmp_path / "llava", **options)
    assert found.look is not None and found.look.curve.samples == 3 and found.tokens == (4, 4)


def test_records_that_break_are_left_out_and_told(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, 4)
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    found, _ = looked(place / "llava", data=tmp_path / "data.json", image_dir=tmp_path / "images")
    assert found.look is not None and found.look.curve.samples == 3
    assert "1 of 4 records left out" in capsys.readouterr().err
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no record with a picture that can be read"):
        looked(place / "llava", data=tmp_path / "data.json", image_dir=tmp_path / "images")


@pytest.mark.parametrize("has_recipe", [True, False])
def test_a_run_is_trained_on_by_a_command_that_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_recipe: bool
) -> None:
    monkeypatch.setattr(of_run, "facts_of", lambda *_, trained_with, **__: trained_with)
    if has_recipe:
        (tmp_path / "recipe.yaml").touch()
    loaded = SimpleNamespace(model=SimpleNamespace(config=None), parts=None)
    bundle = SimpleNamespace(folder=tmp_path / "final")
    written = tmp_path / "recipe.yaml" if has_recipe else "RECIPE"
    run = of_run.OpenRun("runs/one", loaded, bundle)  # type: ignore[arg-type]
    assert run.facts() == f"basic-lite train {written} model.start=runs/one name=NEW"
