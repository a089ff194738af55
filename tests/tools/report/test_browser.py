"""A report and a comparison in Chromium: three widths, light and dark, and axe-core's word on them.

The pictures lie in pytest's folder of temporary files (``--basetemp`` names it), for people to look at.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from basic_lite.cli import main
from basic_lite.run import train
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.predictions import write_predictions
from basic_lite.tools.report.page import write_report
from basic_lite.training import samples
from basic_lite.training.files import sha256
from tests.support.browser import asked_for, axe, chromium, faults, set_size
from tests.support.maps import drawn_maps
from tests.support.runs import log_of, quiet, tiny_recipe, write_data

pytestmark = pytest.mark.web
SIZES = [(390, 844), (820, 1180), (1280, 900)]
LONG = "a_name_without_any_place_to_break_it_" * 5
# Of parts that stand side by side or below each other: pairs of them that lie over each other.
OVERLAPS = """
const found = [], over = (a, b) => a.width * b.width * a.height * b.height > 0 && a.left < b.right - 1
  && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
for (const parent of document.querySelectorAll('main, .cards, .cards > div, .pictures, .charts, figure, svg')) {
  const parts = [...parent.children].filter(one => parent.tagName != 'svg' || one.tagName == 'text');
  const boxes = parts.map(one => one.getBoundingClientRect());
  for (let i = 0; i < parts.length; i++) for (let k = 0; k < i; k++)
    if (over(boxes[i], boxes[k])) found.push([parts[k], parts[i]].map(one => one.textContent.slice(0, 60)).join(' | '));
}
return found;
"""
# What is wider than the box around it, which doesn't scroll.
CUT = """
return [...document.querySelectorAll('.cards > div, .pictures > li, figure, p, dd, h1, h2, h3, summary')]
  .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 150));
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run that has everything, of one that has next to nothing and odd texts, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    full = full_run(folder)
    odd = Path(shutil.copytree(full, folder / LONG[:120]))
    make_odd(odd)
    write_report(full)
    write_report(odd)
    return {"full": full / "report.html", "odd": odd / "report.html", "compare": comparison(folder)}


def full_run(folder: Path) -> Path:
    write_data(folder, 64)
    changes: dict[str, Any] = {"data.held_out": 0.5, "training.eval_every": 2, "training.eval_answers": 2}
    changes |= {"training.eval_generate": 20, "training.max_steps": 4, "supervision.refinement_batches": 8}
    changes |= {"supervision.preset": "measured", "supervision.lambda_das": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_ANSWER_TOKENS", 4)
        run = train(tiny_recipe(folder, changes), console=quiet()).folder
    maps = {"step": 4, "held_out": True, "pictures": [drawn_maps(24, ["dog", "dragonfly"]).to_dict()] * 3}
    (run / "maps.json").write_text(json.dumps(maps))
    change = {"n": 20, "before": 0.5, "after": 0.6, "difference": [0.1, -0.1, 0.3]}
    kinds = [{"of": "texts", "name": "prose", "n": 20, "before": 0.5, "after": 0.6}]
    outcome = {"bits": change, "right": change, "kinds": kinds, "left_out": 0}
    probed = {"model_sha256": sha256(run / "final" / "manifest.json"), "text_probe": outcome}
    (run / "text_probe_final.json").write_text(json.dumps(probed))
    data = json.loads((run / "data.json").read_text())
    data["train"]["dropped"] = [f"record {n}: the picture {LONG}.png is broken" for n in range(60)]
    (run / "data.json").write_text(json.dumps(data))
    with (run / "log.jsonl").open("a") as stream:
        parts_s = {"tower": 0.1, "LLM forward": 0.5, "backward": 1.0, "waiting for data": 0.02}
        stream.write(json.dumps({"step": 4, "time": {"step_s": 1.6, "parts_s": parts_s}}) + "\n")
    return run


def make_odd(run: Path) -> None:
    """Losses that are no numbers, damaged lines, and texts without a place to break."""
    for name in ("maps.json", "samples.json", "text_probe_final.json"):
        (run / name).unlink()
    lines: list[Any] = [{**line, "lm": 1e6 * (1 + line["step"])} for line in log_of(run) if "lm" in line]
    asked = {"picture": LONG, "question": LONG, "answer": "", "reference": LONG + "<b>", "number": 1}
    lines += [{"step": 4, "eval_loss": 2.0}, {"step": 4, "eval_loss": float("nan")}, {"step": 4, "answers": [asked]}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, 3, [], {"lm": 2}]))
    (run / "recipe.yaml").write_text(f"name: {LONG}\n")


def comparison(folder: Path) -> Path:
    for side, every in (("a", 3), ("b", 2), (LONG[:100], 5)):
        (folder / side).mkdir()
        rows = [
            Prediction(n + 1, str(n), "colour" if n % 2 else LONG[:60], [f"{n}.png"], f"what {n}? {LONG}", "red",
                       "red" if n % every else LONG, n % every > 0, score=float(n % every > 0), trained_on=False)
            for n in range(60)
        ]  # fmt: skip
        summary = {"settings": {"data": "d", "data_sha256": "d"}, "metric": "exact"}
        write_predictions(rows, summary, folder / side / "predictions_d_final.jsonl")
    page = folder / "compare.html"
    sides = [str(folder / side / "predictions_d_final.jsonl") for side in ("a", "b", LONG[:100])]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *sides, "--out", str(page)])
    assert not ended.value.code
    return page


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    made = chromium()
    yield made
    made.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "odd", "compare"])
def test_pages_at_three_widths(driver: Any, pages: dict[str, Path], name: str, scheme: str, tmp_path: Path) -> None:
    script, address = axe(), pages[name].resolve().as_uri()
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for width, height in SIZES:
        for log in ("performance", "browser"):
            driver.get_log(log)  # what is of another page
        set_size(driver, width, height)
        driver.get(address)
        driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (tmp_path / f"{name}-{scheme}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.execute_script(CUT) == []
        assert driver.execute_script(OVERLAPS) == []
        assert faults(driver, script) == []
        assert {url.split("#")[0] for url in asked_for(driver)} == {address}
        assert [one for one in driver.get_log("browser") if one["level"] == "SEVERE"] == []
