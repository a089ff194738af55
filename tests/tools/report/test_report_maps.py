"""Token maps in a run's report: kept by the run, drawn by whoever writes the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.data.batches import Collator
from basic_lite.data.pixels import pixels
from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection
from basic_lite.run import train
from basic_lite.supervision import token_maps
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.inspect.of_run import OpenRun
from basic_lite.tools.report.page import write_report
from basic_lite.training import maps as training_maps
from basic_lite.training.answer import chat_format
from basic_lite.training.maps import KEPT, run_maps
from tests.support.maps import drawn_maps
from tests.support.pages import PageText
from tests.support.runs import quiet, tiny_recipe, write_data


def kept(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "maps.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that holds out half of its pictures and evaluates twice; and its data."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder, 12)
    changes = {"data.held_out": 0.5, "training.eval_every": 1, "training.max_steps": 2}
    return train(tiny_recipe(folder, changes), console=quiet(), report=write_report).folder


def test_the_report_shows_what_the_run_kept(made: Path) -> None:
    found = kept(made)
    pictures = [PictureMaps.of(one) for one in found["pictures"]]
    assert (found["step"], found["held_out"], len({one.name for one in pictures})) == (2, True, KEPT)
    text = (made / "report.html").read_text(encoding="utf-8")
    page = PageText(text)
    assert "What the visual tokens say" in page.text and "Measured after step 2" in page.text
    for one in pictures:
        assert one.picture in text and one.name in page.text
    assert text.count("--picture:url(") == KEPT
    # Attention, v, two layers and v̂ of three pictures with four patches; one chart for all of them.
    assert text.count('data-tip="') == 3 * 5 * 4 and text.count("Cosine of v with what each layer") == 2
    assert len(text) < 3_000_000 and "<script" not in text and not page.links


def test_texts_of_a_strangers_maps_break_nothing(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    found = kept(run)
    for one in found["pictures"]:
        for name in ("name", "part", "text", "whose"):
            one[name] = f'"><script>{name}</script>'
        one["words"] = [['"><script>word</script>' for _ in row] for row in one["words"]]
        one["places"] = ['"><script>place</script>' for _ in one["places"]]
    (run / "maps.json").write_text(json.dumps(found))
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in text and all(
        f"script&gt;{name}&lt;/script" in text for name in ("name", "part", "word", "whose")
    )


def test_they_are_those_of_the_finished_model(made: Path) -> None:
    run = OpenRun.of(made, torch.device("cpu"))
    folder = made.parent.parent
    records = load_records(SourceSection(path=str(folder / "data.json"), image_dir=str(folder / "images")), root=folder)
    (first, *_) = (PictureMaps.of(one) for one in kept(made)["pictures"])
    record = records[int(first.name.split(".")[0])]
    encoded = chat_format(run.recipe, run.loaded.frontend).encode(record, 64)
    sample: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    sample["pixel_values"] = pixels(record.images, run.loaded.frontend.image_processor, run.recipe.data.image_fit)
    supervision = run.supervision(lambda text: None)
    batch = Collator(int(run.loaded.tokenizer.pad_token_id))([sample])
    (again,) = run_maps(run.loaded, supervision, batch, [first.name], supervision.settings.text_queries)
    assert (again.words, again.in_text, again.sinks, again.picture) == (
        first.words, first.in_text, first.sinks, first.picture,
    )  # fmt: skip
    assert again.attention == pytest.approx(first.attention, rel=1e-4)
    assert [mean for mean, _, _ in again.trace] == pytest.approx([mean for mean, _, _ in first.trace], abs=1e-5)


def test_a_person_may_have_changed_them(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    found = kept(run)
    found["pictures"][0]["name"] = '"><script>alert(1)</script>'
    found["pictures"][1]["words"][0] = ["<b>"] * 4
    (run / "maps.json").write_text(json.dumps(found))
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in text and "What the visual tokens say" in PageText(text).text
    found["pictures"][2]["picture"] = "data:image/jpeg;base64,x);background:url(http://x"
    (run / "maps.json").write_text(json.dumps(found))
    text = write_report(run).read_text(encoding="utf-8")
    assert "http://x" not in text and "What the visual tokens say" not in PageText(text).text


@pytest.mark.parametrize("change", [lambda trace: [], lambda trace: trace[:1], lambda trace: trace * 2])
def test_a_chart_that_a_person_has_changed(
    made: Path, tmp_path: Path, change: Callable[[list[Any]], list[Any]]
) -> None:
    """One that was empty, or longer than another's, ended `report` with a traceback."""
    run = Path(shutil.copytree(made, tmp_path / "run"))
    found = kept(run)
    found["pictures"][1]["trace"] = change(found["pictures"][1]["trace"])
    (run / "maps.json").write_text(json.dumps(found))
    assert "What the visual tokens say" not in PageText(write_report(run).read_text(encoding="utf-8")).text


def test_a_page_stays_small(made: Path, tmp_path: Path) -> None:
    """By 3 MB: pictures of 40 × 40 patches, of which two have room."""
    run = Path(shutil.copytree(made, tmp_path / "run"))
    large = drawn_maps(40, ["dog", "dragonfly"]).to_dict()
    (run / "maps.json").write_text(json.dumps({"step": 2, "held_out": True, "pictures": [large] * 3}))
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count("--picture:url(") == 2 and 500_000 < len(text.encode()) < 3_000_000


def test_two_pictures_whose_grid_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 4)
    turns = [{"from": "human", "value": "<image>\n<image>\nwhat ?"}, {"from": "gpt", "value": "red"}]
    records = [{"image": [f"{n}.png", f"{n + 1}.png"], "conversations": turns} for n in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    monkeypatch.setattr(training_maps, "picture_views", lambda *given: None)
    run = train(tiny_recipe(tmp_path, {"training.max_steps": 1}), console=quiet(), report=write_report).folder
    found = [PictureMaps.of(one) for one in kept(run)["pictures"]]
    assert {(one.name, one.rows, one.tokens) for one in found} == {(f"{n}.png, {n + 1}.png", 0, 8) for n in range(3)}
    assert "0.png, 1.png" in PageText((run / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.soak
def test_without_held_out_pictures_and_without_basic(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    changes = {"training.max_steps": 1, "supervision.enabled": False}
    run = train(tiny_recipe(tmp_path, changes), console=quiet(), report=write_report).folder
    assert not kept(run)["held_out"] and len(kept(run)["pictures"]) == KEPT
    assert "pictures that the run trains on" in PageText((run / "report.html").read_text(encoding="utf-8")).text


def test_they_are_measured_once_a_step_and_stop_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 6)
    calls: list[int] = []
    measure = token_maps.measure_maps

    def counted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > KEPT:
            raise ValueError("a fault")
        return measure(*given)

    monkeypatch.setattr(training_maps, "measure_maps", counted)
    console = quiet()
    changes = {"training.max_steps": 2, "data.held_out": 0.5, "training.eval_every": 1}
    run = train(tiny_recipe(tmp_path, changes), console=console, report=write_report).folder
    said = console.file.getvalue()  # type: ignore[attr-defined]
    # Those after step 2 fail, at the evaluation and at the end; the page shows the older ones.
    assert said.count("no token maps, through a fault") == 2 and kept(run)["step"] == 1 and len(calls) == KEPT + 2
    assert "Measured after step 1" in PageText((run / "report.html").read_text(encoding="utf-8")).text
