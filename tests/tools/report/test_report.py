"""``report.html``: what it says of a run, that it needs nothing else, and that no text breaks it."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.resampling import Interval
from basic_lite.run import train
from basic_lite.supervision.premise import RefinementCurve
from basic_lite.tools.report.charts import Chart, Line, smoothed
from basic_lite.tools.report.facts import read_run
from basic_lite.tools.report.page import Card, cards, charts, render, write_report
from basic_lite.tools.runs import row_of
from basic_lite.training import log_lines, samples
from basic_lite.training.assembly import software_of
from basic_lite.training.log_lines import lines_of, read_log
from basic_lite.training.maps import ReportMaps
from basic_lite.training.places import MAPS, REPORT
from basic_lite.training.software import read_software, write_software
from tests.support.runs import log_of, quiet, tiny_recipe, write_data


class Page(HTMLParser):
    """Tags in order, those that are open at the end, addresses, and the text."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [value for name in ("href", "src") if (value := found.get(name))]
        if tag == "img":
            self.images.append(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with held-out data and BASIC, which wrote its report itself."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder, 40)
    changes: dict[str, Any] = {"data.held_out": 0.5, "training.eval_every": 2, "training.eval_answers": 2}
    changes |= {"training.max_steps": 4, "supervision.refinement_batches": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_ANSWER_TOKENS", 4)
        return train(tiny_recipe(folder, changes), console=quiet(), report=write_report).folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_run_writes_a_page_that_needs_nothing_else(made: Path) -> None:
    path = made / REPORT
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open and path.stat().st_size < 3_000_000
    assert page.images and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert all(image["alt"] for image in page.images)
    # The numbers are the log's.
    log = log_of(made)
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert f"Held-out loss {losses[0]:.3f} → {losses[-1]:.3f}" in page.text
    assert "not measured" in page.text and "basic-lite eval RUN --held-out" in page.text
    curve = RefinementCurve.from_dict([line["refinement"] for line in log if "refinement" in line][-1])
    assert f"Step 4: {curve.comparison()}." in page.text
    last = [line["answers"] for line in log if "answers" in line][-1]
    assert len(page.images) == len(last) == 12 and page.text.count("before:") == 12
    assert page.text.count("✓ right") == sum(one["answer"] == one["reference"] for one in last)
    assert "training: 20 records, 20 with a picture" in page.text and "left out" not in page.text


def test_the_command_writes_it_anew(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = (place / REPORT).read_text()
    (place / REPORT).write_text("old")
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(place)])
    assert not stopped.value.code and capsys.readouterr().out.strip() == str(place / REPORT)
    assert "<main>" in (place / REPORT).read_text() and len((place / REPORT).read_text()) > len(old) * 0.9


def test_text_of_data_and_recipes_breaks_nothing(place: Path) -> None:
    bad = '"><script>alert(1)</script>{{ 7919*6007 }}\x1b[31m'
    lines = [line for line in log_of(place) if "answers" not in line]
    asked = {"picture": bad, "question": bad, "answer": bad, "reference": bad, "number": 1}
    lines.append({"step": 4, "answers": [asked]})
    for line in lines:
        if "refinement" in line:
            line["refinement"]["places"][1] = bad
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "samples.json").write_text(json.dumps({"1": 'x" onerror="alert(1)'}))
    (place / "recipe.yaml").write_text(f"name: run\n# {bad}\n")
    data = json.loads((place / "data.json").read_text())
    data["train"]["dropped"] = [bad] * 60
    (place / "data.json").write_text(json.dumps(data))
    text = write_report(place).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and "<script" not in text and str(7919 * 6007) not in text
    assert "60 records were left out" in page.text and "The others are in data.json" in page.text
    assert not page.links and not page.images  # only pictures of its own


@pytest.mark.parametrize("name", ["data.json", "samples.json", "maps.json", "recipe.yaml", "final/manifest.json"])
@pytest.mark.parametrize("content", ["", "[1]", '{"train": 3, "machine": 4, "pictures": [{"rows": 1}]}', "null"])
def test_damaged_files_leave_their_part_out(place: Path, name: str, content: str) -> None:
    (place / name).write_text(content)
    assert not Page(write_report(place).read_text(encoding="utf-8")).open


def all_of_one_minute(run: Path) -> None:
    for path in run.rglob("*"):  # the page says when one was changed last
        os.utime(path, (1.7e9, 1.7e9))


def test_damaged_log_lines_are_passed_over(place: Path) -> None:
    """They are counted, and the page says nothing else than it did before."""
    all_of_one_minute(place)
    before = Page(write_report(place).read_text(encoding="utf-8"))
    curve = next(line["refinement"] for line in log_of(place) if "refinement" in line)
    odd: list[Any] = [
        {"step": 4, "refinement": {}},
        {"step": 4, "refinement": curve | {"own": curve["own"][1:]}},
        {"step": 4, "refinement": curve | {"control": curve["control"][1:]}},
        {"step": 4, "refinement": curve | {"gains": [[0.1, 0.2]] * len(curve["own"])}},
        {"step": 4, "refinement": curve | {"gains": curve["gains"][1:]}},
        {"step": 4, "refinement": curve | {"health": {"first_norm": [1.0]}}},
        {"step": 4, "refinement": shorter(curve)},
        {"step": 4, "gate": {"verdict": 1}},
        {"step": 4, "gate": {"open": True}},
        {"step": "x", "lm": 1},
        {"step": 10**400, "lm": 1},
        {"step": True},
        {"lm": 1.0},
        {"step": 4, "lm": "1"},
        {"step": 4, "eval_loss": 1e308},
        {"step": 4, "eval_loss": -(10**400)},
        {"step": 4, "step_s": 1e300},
        {"step": 4, "peak_memory_gib": -1},
        {"step": 4, "answers": [{"picture": 1}, 2]},
        {"step": 4, "time": {"parts_s": {"tower": -1.0, "backward": 1.0}}},
        {"step": 4, "text_probe": {"bits": {"n": 2, "before": 0, "after": 1, "difference": [1, 1, 1]}}},
        [4],
    ]
    with (place / "log.jsonl").open("ab") as stream:
        stream.write(b"".join(json.dumps(one).encode() + b"\n" for one in odd))
        stream.write(b'\xff\n{"step": 4, "lm": 1\n\n{"step": 5, "l')  # the last isn't written to its end yet
    all_of_one_minute(place)
    after = Page(write_report(place).read_text(encoding="utf-8"))
    told = f"; {len(odd) + 2} lines of log.jsonl are damaged and left out"
    assert not after.open and told in after.text
    assert after.text.replace(told, "") == before.text
    assert read_log(place).damaged == len(odd) + 2


def shorter(curve: dict[str, Any]) -> dict[str, Any]:
    """A curve that is whole in itself, of a model with a layer less."""
    cut = {key: [*curve[key][:-2], curve[key][-1]] for key in ("places", "own", "control", "gains")}
    return {**curve, **cut, "health": None}


def test_a_run_writes_whole_lines_alone(made: Path) -> None:
    read = read_log(made)
    assert read.damaged == 0 and list(lines_of(made)) == (log := log_of(made))
    assert {"lm", "eval_loss", "refinement", "answers", "time"} <= {name for line in log for name in line}
    # Nothing that is read anywhere is lost where a step's numbers are kept apart.
    for name in ("eval_loss", "refinement", "gate", "answers", "time"):
        assert [line for line in read.rare if name in line] == [line for line in log if name in line]
    for name, points in read.series.items():
        assert list(points) == [(line["step"], line[name]) for line in log if name in line]
    assert max(line["step"] for line in read.rare) == log[-1]["step"]


@pytest.mark.parametrize("odd", [1e308, -1e308, 1e100, math.inf, math.nan, 5e-324])
def test_odd_numbers_end_no_chart(odd: float) -> None:
    bars = [(-odd, odd), None, (0.0, 1.0)]
    for log_y in (False, True):
        points = [(0, 1.0), (1, odd), (2, 2.0)]
        drawing = Chart("", "x", "y", [Line("a", points, bars), Line("b", [(1, odd)])], log_y=log_y).svg()
        assert "nan" not in drawing and "inf" not in drawing and "<polyline" in drawing


def test_a_long_run_has_a_small_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 steps with 400 evaluations. The page is written at each of them: it reads the log once."""
    log = log_of(place)
    at_end = [line for line in log if line["step"] == log[-1]["step"] and "loss" not in line and "time" not in line]
    step = next(line for line in log if "loss" in line)
    with (place / "log.jsonl").open("w") as stream:
        for number in range(1, 20_001):
            lines = [step, *(at_end if number % 50 == 0 else [])]
            stream.writelines(json.dumps(line | {"step": number}) + "\n" for line in lines)
    read, real = list[Path](), log_lines.json_lines

    def reading(path: Path, *, after: int) -> Iterator[Any]:
        read.append(path)
        return real(path, after=after)

    monkeypatch.setattr(log_lines, "json_lines", reading)
    text = render(found := read_run(place))
    assert len(read) == 1 and len(found.curves) == 400 and len(found.series["lm"]) == 20_000
    assert len(text.encode()) < 200_000 and "mean of 400" in text


def no_new_maps(run: Path) -> None:
    """Look for the step of a run's token maps, which are there already."""
    unused: Any = None
    ReportMaps(unused, unused, unused, None, run, unused).write()


@pytest.mark.parametrize("write", [write_report, no_new_maps])
def test_a_page_takes_little_memory_for_a_step(place: Path, write: Callable[[Path], object]) -> None:
    """Each evaluation writes one, so what it takes for a step is what a training run's memory grows by in a step."""
    step = next(line for line in log_of(place) if "das" in line)
    peaks = []
    for steps in (500, 500, 1000):  # the first also loads what a page needs
        lines = [json.dumps(step | {"step": number, "lm": 1 / number}) + "\n" for number in range(1, steps + 1)]
        (place / "log.jsonl").write_text("".join(lines))
        maps = json.loads((place / MAPS).read_text())
        (place / MAPS).write_text(json.dumps(maps | {"step": steps}))
        gc.collect()
        tracemalloc.start()
        try:
            write(place)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 500 < 400, "bytes"


@pytest.mark.parametrize("count", [0, 1, 3, 50, 1000])
def test_means_are_those_of_the_points_so_far(count: int) -> None:
    values = [(step, math.sin(step) * 10 ** (step % 7)) for step in range(count)]
    for over in (1, 2, 50):
        means = [sum(y for _, y in values[max(0, i + 1 - over) : i + 1]) / min(over, i + 1) for i in range(count)]
        assert [mean for _, mean in smoothed(values, over)] == pytest.approx(means, abs=1e-6)


def test_a_report_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    def fail(run: Path) -> None:
        raise UserError(f"can't write {run / REPORT} (No space left on device); make room")

    write_data(tmp_path, 6)
    console = quiet()
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1, "data.held_out": 0.5})
    assert (train(recipe, console=console, report=fail).bundle / "manifest.json").is_file()
    assert "warning: no report: can't write" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_score_and_a_rise_are_on_top(place: Path) -> None:
    summary = {"not_trained_on": {"right": 45, "n": 60}, "settings": {"step": 4, "data": "held-out"}}
    (place / "predictions_held-out_final.summary.json").write_text(json.dumps(summary))
    with (place / "log.jsonl").open("a") as stream:
        stream.write('{"step": 5, "eval_loss": 90.0}\n')
    shown = {card.title: card for card in cards(read_run(place))}
    assert shown["Held-out loss"].note.startswith("nats a token; 20 of 20 pictures trained on")  # they are all alike
    data = json.loads((place / "data.json").read_text())
    data["eval"]["trained_on"]["of"]["pictures"] = [0, 20]
    (place / "data.json").write_text(json.dumps(data))
    (known,) = (card for card in cards(read_run(place)) if card.title == "Held-out loss")
    assert known.note.startswith("nats a token, on data that it wasn't trained on; it was")
    assert shown["Exact match"].value == "75.0%" and "of 60" in shown["Exact match"].note
    assert shown["Held-out loss"].value.endswith("→ 90.000") and "has risen since" in shown["Held-out loss"].note
    with (place / "log.jsonl").open("a") as stream:
        stream.write(
            '{"step": 5, "time": {"steps": 3, "step_s": 4, "parts_s": {"tower": 1.0, "backward": 3.0, "idle": 0}}}\n'
        )
    assert "Time of the run" in shown and "Time of the steps" not in shown
    page = Page(render(read_run(place)))
    assert "part of a step time share backward 3 s 75% tower 1 s 25%" in page.text and "idle" not in page.text
    assert "75.0%" in render(read_run(place))


def test_a_loss_that_is_no_number_is_said(place: Path) -> None:
    with (place / "log.jsonl").open("a") as stream:
        stream.write('{"step": 4, "eval_loss": 2.0}\n{"step": 4, "eval_loss": NaN}\n')
    (card,) = (card for card in cards(read_run(place)) if card.title == "Held-out loss")
    assert card.value.endswith("→ is no number") and card.note.endswith("and is no number now")
    assert "held-out loss is no number" in row_of(place).score
    assert "is no number at step 4" in dict(charts(read_run(place)))["Loss"].says


def test_the_premise_is_on_top(place: Path) -> None:
    """Of the last curve; of the gate's last look where there is one; else that it wasn't measured."""

    def premise() -> Card | None:
        return next((card for card in cards(read_run(place)) if card.title == "BASIC's premise"), None)

    curve = read_run(place).curves[-1][1]
    assert premise() == Card("BASIC's premise", curve.verdict, f"{curve.comparison(judged=False)}, step 4")
    lines = log_of(place)
    gate = {"step": 2, "gate": {"open": True, "verdict": "holds", "gain": [0.2, 0.1, 0.3], "samples": 40}}
    write_log(place, [*lines, gate])
    told = "gain of v̂ over v +0.200 [+0.100, +0.300] over 40 samples, step 2"
    assert premise() == Card("BASIC's premise", "holds", told)
    write_log(place, [line for line in lines if "refinement" not in line])
    without = premise()
    assert without is not None and without.value == "not measured"
    write_log(place, [{"step": line["step"], "lm": line["lm"]} for line in lines if "lm" in line])
    assert premise() is None


def test_the_time_of_the_run_is_on_top(place: Path) -> None:
    steps = [{"step": step, "lm": 2.0, "step_s": 1.0} for step in range(1, 5)]
    ended = {"first": 0, "whole_s": 36.8, "saving_s": 2.0, "evaluating_s": 20.0, "answering_s": 10.3}

    def card() -> Card:
        return next(card for card in cards(read_run(place)) if card.title.startswith("Time of the"))

    write_log(place, steps)
    assert card() == Card("Time of the steps", "4.0 s")
    write_log(place, [*steps, {"step": 4, "time": ended}])
    assert card() == Card("Time of the run", "36.8 s", "12% of it steps (4.5 s), the rest evaluating and saving")
    write_log(place, [*steps, {"step": 4, "time": ended | {"first": 2}}])
    assert card().value == "38.8 s" and card().note.endswith("of what came before step 3 only the steps are known")


def write_log(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_versions_are_on_the_page(place: Path) -> None:
    versions = software_of(torch.device("cpu"))
    assert {"Python", "torch", "transformers", "peft", "bitsandbytes", "torch's build", "device"} <= versions.keys()
    assert json.loads((place / "final" / "manifest.json").read_text())["software"] == versions
    shown = "; ".join(f"{name} {version}" for name, version in versions.items())
    assert shown in Page(render(read_run(place))).text
    write_software(place, 2, versions)
    assert read_software(place) == [{"step": 0, "versions": versions}], "nothing is new"
    write_software(place, 2, versions | {"torch": "9.9"})
    assert "from step 3: " in (text := Page(render(read_run(place))).text) and "torch 9.9; " in text and shown in text
    write_software(place, 1, versions)
    assert read_software(place) == [{"step": 0, "versions": versions}], "step 2 is made again"
    for damaged in ("[1]", "{}", '[{"step": "x", "versions": {}}]', '[{"step": 1, "versions": {"torch": 2}}]'):
        (place / "software.json").write_text(damaged)
        text = Page(render(read_run(place))).text
        assert "torch 2" not in text and f"Versions basic-lite {versions['basic-lite']} models: " in text


def test_charts_draw_what_there_is(made: Path) -> None:
    found = dict(charts(read_run(made)))
    assert {"Loss", "Refinement curve"} <= found.keys()
    curve = found["Refinement curve"]
    assert len(curve.lines) == 2 and curve.x_names[0] == "v" and curve.x_names[-1] == "v̂"
    gains = read_run(made).curves[-1][1].gains
    low, high = curve.lines[-1].bars[-1] or (0, 0)
    assert high - low == pytest.approx(gains[-1].high - gains[-1].low) and isinstance(gains[-1], Interval)


def test_a_point_lies_where_its_value_is() -> None:
    """By hand: the drawing is 480 × 236, with margins 72, 12, 12, 46."""
    chart = Chart("", "x", "y", [Line("a", [(0, 0.0), (5, 5.0), (10, 10.0)], marks=True)])
    assert 'points="72.0,190.0 270.0,101.0 468.0,12.0"' in chart.svg()
    log = Chart("", "x", "y", [Line("a", [(0, 1.0), (1, 0.0), (2, 10.0), (4, 100.0)])], log_y=True)
    assert 'points="72.0,190.0 270.0,101.0 468.0,12.0"' in log.svg()
    assert Chart("", "x", "y", [Line("a", [(1, float("nan"))])]).svg() == ""
    one = Chart("", "x", "y", [Line("a", [(1, 2.0)])])
    assert "<circle" in one.svg() and one.legend() == [(0, "a")]
    many = Chart("", "x", "y", [Line("a", [(i, float(i % 7)) for i in range(9_000)])])
    assert len(re.findall(r"\d,\d", many.svg())) <= 402
    assert list(smoothed([(0, 0.0), (1, 2.0), (2, 4.0)], 2)) == [(0, 0.0), (1, 1.0), (2, 3.0)]
    points = [(i, float(i)) for i in range(32)]
    named = Chart("", "x", "y", [Line("a", points)], x_names=[f"h{i}" for i in range(32)]).svg()
    shown = [int(n) for n in re.findall(r">h(\d+)<", named)]
    assert shown[-1] == 31 and all(later - one >= 3 for one, later in pairwise(shown))
