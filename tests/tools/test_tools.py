"""Evaluation and dry run on tiny runs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from basic_lite.run import train
from basic_lite.scoring.controls import other_images
from basic_lite.scoring.metrics.exact import normalise
from basic_lite.tools.chat.command import chat
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.score import EvalResult
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.bundle import load_trained
from tests.support.runs import quiet, tiny_recipe, write_data


def test_eval_answers_scores_and_writes(trained: Path) -> None:
    folder = trained.parent.parent
    console = quiet()
    result = evaluate_run(trained, folder / "data.json", image_dir=folder / "images", batch_size=5, console=console)
    assert result.counts == {"colour": 12, "all": 12}
    assert result.accuracy["all"] >= 0.9, [p.prediction for p in result.predictions]
    lines = [json.loads(x) for x in (trained / "predictions_data_final.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, 13))
    assert lines[0]["reference"] == "it is red" and lines[0]["correct"] == (lines[0]["prediction"] == "it is red")
    assert [line["images"] for line in lines] == [[f"{n}.png"] for n in range(12)]
    assert result.exact_match == result.accuracy["all"] and result.cut == sum(line["cut"] for line in lines)
    assert "colour" in console.file.getvalue()  # type: ignore[attr-defined]


def test_answers_depend_on_the_picture_not_on_the_batch(trained: Path) -> None:
    folder = trained.parent.parent
    loaded, bundle = load_trained(trained, torch.device("cpu"))
    source = SourceSection(path=str(folder / "data.json"), image_dir=str(folder / "images"))
    records = list(load_records(source, root=Path.cwd()))
    form = chat_format(bundle.recipe, loaded.frontend)

    def ask(size: int, images=None) -> list[str]:
        return answer(loaded, form, records, image_fit="pad", batch_size=size, max_new_tokens=8, images=images)

    alone, together = ask(1), ask(12)  # questions differ in length: left padding must not show
    assert alone == together
    others = ask(12, images=lambda i: records[(i + 1) % 12].images)
    assert sum(a == b for a, b in zip(alone, others, strict=True)) <= 3


def test_eval_refuses_what_it_cannot_use(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.json"):
        evaluate_run(trained, tmp_path / "nowhere.json", console=quiet())
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(UserError, match=r"there is no such file or folder; did you mean .*/empty\.json\?"):
        evaluate_run(trained, tmp_path / "emty.json", console=quiet())
    with pytest.raises(UserError, match="no record in it"):
        evaluate_run(trained, tmp_path / "empty.json", console=quiet())
    data = write_data(tmp_path, 3)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(UserError, match=r"data.json, record 2 .*1\.png"):
        evaluate_run(trained, data, image_dir=tmp_path / "images", console=quiet())


def test_eval_without_references_scores_nothing(trained: Path, tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    turns = [{"from": "human", "value": "<image>\nwhat colour is it ?"}]
    (tmp_path / "open.jsonl").write_text(json.dumps({"id": 1, "image": "0.png", "conversations": turns}) + "\n")
    out = tmp_path / "out" / "p.jsonl"
    result = evaluate_run(trained, tmp_path / "open.jsonl", image_dir=tmp_path / "images", out=out, console=quiet())
    assert result.accuracy == {} and result.predictions[0].correct is None
    assert json.loads(out.read_text())["prediction"]


def test_eval_keeps_predictions_of_other_settings(trained: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, 3).rename(tmp_path / "again.json")
    said: list[str] = []

    def run(**options: Any) -> EvalResult:
        console = quiet()
        result = evaluate_run(trained, data, image_dir=tmp_path / "images", console=console, **options)
        said.append(console.file.getvalue().split("predictions: ")[1].strip())  # type: ignore[attr-defined]
        return result

    whole, short = run(), run(max_new_tokens=1)
    run()
    run(limit=2, max_new_tokens=1)
    names = ["again_final", "again_final_2", "again_final", "again_final_3"]
    assert said == [f"{trained}/predictions_{name}.jsonl" + " (replaced)" * (n == 2) for n, name in enumerate(names)]
    assert whole.cut == 0 and short.cut == 3 and short.max_new_tokens == 1
    assert all(len(prediction.prediction.split()) == 1 for prediction in short.predictions)
    summary = json.loads((trained / "predictions_again_final_3.summary.json").read_text())
    assert summary["cut"] == 2 and summary["counts"] == {"colour": 2, "all": 2}
    settings = {"bundle": "final", "step": 80, "data": str(data), "image_dir": str(tmp_path / "images"), "limit": 2}
    settings |= {"template": "tokenizer", "max_new_tokens": 1}
    assert {key: summary["settings"][key] for key in settings} == settings


def test_eval_says_how_many_answers_were_cut(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path, 3)
    options: dict[str, Any] = {"image_dir": tmp_path / "images", "out": tmp_path / "p.jsonl", "max_new_tokens": 2}
    evaluate_run(trained, data, **options)
    out, err = capsys.readouterr()
    assert "3 of 3 answers were cut at 2 tokens (--max-new-tokens allows more)" in err and "replaced" not in out
    evaluate_run(trained, data, **options)
    assert "p.jsonl (replaced)" in capsys.readouterr().out.replace("\n", " ")


def test_eval_refuses_a_record_without_a_question(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, 2)
    turns = [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "it is red"}]
    rows = [{"id": 9 + n, "image": f"{n}.png", "conversations": turns} for n in range(2)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"c.jsonl, line 1 \(id 9\): it has no question.*--template plain"):
        evaluate_run(trained, tmp_path / "c.jsonl", image_dir=tmp_path / "images", console=quiet())
    options: dict[str, Any] = {"image_dir": tmp_path / "images", "out": tmp_path / "c.out.jsonl", "console": quiet()}
    assert evaluate_run(trained, tmp_path / "c.jsonl", template="plain", **options).counts == {"all": 2}
    said = " ".join(capsys.readouterr().err.split())
    assert "each question is asked twice: with its picture and with another (--no-controls: once)" in said
    options["out"] = tmp_path / "d.out.jsonl"
    with pytest.raises(UserError, match=r"c.jsonl, line 1 \(id 9\): the metric yes_no can't read .* 'it is red'"):
        evaluate_run(trained, tmp_path / "c.jsonl", template="plain", metric="yes_no", **options)


@pytest.mark.parametrize(("one", "other"), [("It is  Red.", "it is red"), ("two\n", "two"), ("3.5", "3.5")])
def test_normalise(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_score_and_other_images() -> None:
    assert EvalResult([]).accuracy == {}
    refs = [ImageRef(f"{i // 2}.png", "d") for i in range(8)]  # two questions a picture
    records = [Record(i, "", "s", (ref,), ()) for i, ref in enumerate(refs)]
    for seed in range(5):
        other = other_images(records, seed)
        assert all(other(i) != records[i].images for i in range(8))
    alone = [Record(0, "", "s", (refs[0],), ())]
    assert other_images(alone, 0)(0) == alone[0].images


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 9, text_only=2)
    recipe = tiny_recipe(tmp_path)
    from transformers import PreTrainedModel

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a dry run reads no weights")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    stream = io.StringIO()
    dry_run(recipe, Console(file=stream, width=160, force_terminal=True, color_system="truecolor"))
    shown = stream.getvalue()
    plain = Console(file=io.StringIO(), width=160)
    plain.print(shown)
    assert "{" not in shown
    for text in ("LLM linears", "nf4 double", "projector", "steps", "4 of 4 samples", "layers 1..2 of 4", "<image>×4"):
        assert text in shown, text
    assert "\x1b[1;32m" in shown  # supervised tokens in green
    assert "not supervised" in shown
    for file in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True, no_color=True)):
        dry_run(recipe, file)
        written = file.file.getvalue()  # type: ignore[attr-defined]
        assert "KiB" in written and not re.search(r"\b0(\.0+)? (GiB|MiB)| 0\.00$", written, re.MULTILINE)
        assert "one sample as the model gets it" in written and "not supervised" not in written
    assert not (Path(recipe.output) / recipe.name).exists()


def test_dry_run_counts_epochs_with_a_short_last_step(tmp_path: Path) -> None:
    write_data(tmp_path, 5)
    stream = io.StringIO()
    dry_run(tiny_recipe(tmp_path, {"training.max_steps": None, "training.epochs": 2}), Console(file=stream, width=160))
    assert stream.getvalue().startswith("device: CPU")
    assert re.search(r"4 of 4 samples \(.*\), 2.00 epochs of 5 samples", stream.getvalue())


def test_planned_parts_are_the_loaded_ones(tmp_path: Path) -> None:
    from basic_lite.model.adapt import adapt
    from basic_lite.model.audit import audit, planned_parts
    from basic_lite.model.frontend import load_frontend
    from basic_lite.model.load import load_base

    recipe = tiny_recipe(tmp_path)
    planned = {p.part: p for p in planned_parts(recipe, load_frontend(recipe.model), torch.float32)}
    loaded = load_base(recipe, torch.device("cpu"))
    adapt(loaded.parts, recipe)
    real = {p.part: p for p in audit(loaded.parts)}
    assert planned.keys() == real.keys()
    for name, part in real.items():
        ours = planned[name]
        assert (ours.parameters, ours.trainable, ours.dtype, ours.module) == (
            part.parameters,
            part.trainable,
            part.dtype,
            part.module,
        ), name
        if name != "LLM linears":  # bitsandbytes' tables of 1 KiB a layer count only where layers are this tiny
            assert ours.bytes == part.bytes


def test_a_caption_model_is_asked_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path, 6)
    changes = {"stage": 1, "lora.enabled": False, "data.template": "plain", "training.max_steps": 1}
    folder = train(tiny_recipe(tmp_path, changes), console=quiet()).folder
    loaded, bundle = load_trained(folder, torch.device("cpu"))
    record = load_records(
        SourceSection(path=str(tmp_path / "data.json"), image_dir=str(tmp_path / "images")), root=Path.cwd()
    )[0]
    form = chat_format(bundle.recipe, loaded.frontend)
    colour = loaded.tokenizer.convert_tokens_to_ids("colour")
    assert colour in form.prompt(record)
    assert colour not in chat_format(bundle.recipe, loaded.frontend, "plain").prompt(record)
    chat(str(folder), [str(tmp_path / "images" / "0.png"), "what colour is it ?"], device="cpu")
    assert "plain template" in capsys.readouterr().err


def test_eval_refuses_an_output_that_cannot_be_written(trained: Path, tmp_path: Path) -> None:
    folder = trained.parent.parent
    with pytest.raises(UserError, match="--out"):
        evaluate_run(trained, folder / "data.json", image_dir=folder / "images", out=tmp_path, console=quiet())


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, so nothing is missing")
def test_dry_run_says_what_needs_a_gpu(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    console = quiet()
    dry_run(tiny_recipe(tmp_path, {"model.tower_on_host": True, "training.device": "auto"}), console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "would be refused: model.tower_on_host: true needs a GPU" in text and "dry run: nothing was loaded" in text
    console = quiet()
    dry_run(tiny_recipe(tmp_path, {"training.device": "cuda"}), console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "would be refused: training.device is cuda, but torch sees no GPU" in text and "nothing was loaded" in text


def test_dry_run_tells_what_train_would_refuse(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    console = quiet()
    recipe = tiny_recipe(tmp_path, {"model.projector": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"train` would refuse to start: model\.projector"):
        dry_run(recipe, console)
    assert "one sample as the model gets it" in console.file.getvalue()  # type: ignore[attr-defined]
    assert not (Path(recipe.output) / recipe.name).exists()
    with pytest.raises(UserError, match="mlflow"):
        dry_run(tiny_recipe(tmp_path, {"training.trackers": ["mlflow"]}), console)
    with pytest.raises(UserError, match="paged_adamw"):
        dry_run(tiny_recipe(tmp_path, {"training.optimizer": "paged_adamw"}), console)


def test_progress_shows_all_at_80_columns() -> None:
    from basic_lite.training.progress import ProgressLine

    values = {"loss": 12.345, "lm": 12.345, "das": 1.234, "sds": 123.456, "sum_a": 0.5, "cos": 0.9}
    for width in (80, 160):
        line = ProgressLine(Console(file=io.StringIO(), width=width, force_terminal=True), "7b_pretrain")
        line._values = {**values, "tokens_per_s": 12345.0, "peak_memory_gib": 23.45}
        shown = line.line(1234, 2180)
        assert all(len(row) <= width for row in shown.plain.split("\n")), shown.plain
        for text in ("tok/s 12,345", "GiB 23.45", "left", "Σa", "cos"):
            assert text in shown.plain
