"""``basic-lite demo``: both stages on the small world, through the same code as any run, and a table at the end."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from basic_lite.console import quiet_libraries
from basic_lite.data.records import Record, load_records
from basic_lite.demo import ASSETS
from basic_lite.demo.rebuild import rebuild as rebuild_models
from basic_lite.demo.world import World, caption_f1, chance, write_world
from basic_lite.errors import UserError
from basic_lite.model.load import Loaded, load_base
from basic_lite.recipe import load_recipe, shipped_recipe
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.run import train
from basic_lite.tools.answer import answer, answer_length, chat_format
from basic_lite.tools.evaluate import ALL, accuracy_table, evaluate
from basic_lite.train.bundle import MANIFEST, sha256
from basic_lite.train.files import write_json
from basic_lite.train.restore import load_trained
from basic_lite.train.run_folder import differences

EVAL_BATCH = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scores:
    """Held-out results of one model: exact match by question type, caption F1, and the images it was shown."""

    accuracy: dict[str, float]
    counts: dict[str, int]
    caption_f1: float | None = None


@dataclass
class Phases:
    """Seconds each phase took; a phase whose result was there already is marked as reused."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.console.rule(f"[bold]{name}", align="left")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Place:
    """Where a demo's models, world and runs lie."""

    out: Path
    models: Path
    world: World
    seed: int

    def recipe(self, stage: int, folder: Path, **changes: Any) -> Recipe:
        """A shipped demo recipe on this demo's files, its runs below ``folder``; ``changes``: dotted keys with __."""
        values: dict[str, Any] = {
            "seed": self.seed,
            "output": str(folder),
            "model.vision": str(self.models / "vision"),
            "model.llm": str(self.models / "llm"),
            "data.train.path": str(self.world.pretrain if stage == 1 else self.world.instruct),
            "data.train.image_dir": str(self.world.images),
        }
        if stage == 2:
            values["model.projector"] = str(folder / "stage1")
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        return load_recipe(shipped_recipe(f"demo_stage{stage}"), overrides)

    def records(self, path: Path) -> list[Record]:
        return list(load_records(SourceSection(path=str(path), image_dir=str(self.world.images)), root=Path.cwd()))


def demo(
    out: Path,
    *,
    seed: int = 0,
    rebuild: bool = False,
    ablate: bool = False,
    seeds: int = 3,
    console: Console | None = None,
) -> None:
    """Make the world, train both stages, evaluate on held-out images, print the table.

    Everything lies below ``out`` and is reused by the next call with the same settings.

    Raises:
        UserError: ``out`` holds something else.
        Interrupted: Ctrl-C during a training; the same call goes on.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    # As in the demo's recipes: so small a model is no faster on two threads, and sums come out the same anywhere.
    torch.set_num_threads(1)
    phases = Phases(console)
    place = _prepare(out, seed, rebuild, phases)
    if ablate:
        from basic_lite.demo.ablate import ablation

        ablation(place, seeds, console)
        return
    columns, captions = _train_and_score(place, phases, console)
    _report(place, columns, captions, phases, console)


def _prepare(out: Path, seed: int, rebuild: bool, phases: Phases) -> Place:
    """Models (shipped, or rebuilt from the seed) and the world on disk."""
    console = phases.console
    models = ASSETS
    if rebuild:
        with phases.phase("models"):
            models = out / "models"
            marker = models / "rebuilt.json"
            if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == {"seed": seed}:
                phases.reused.add("models")
            else:
                marker.unlink(missing_ok=True)
                rebuild_models(models, seed, progress=lambda line: console.print(line, markup=False))
                write_json(marker, {"seed": seed})
    with phases.phase("world"):
        world_folder = out / "world"
        before = _written(world_folder / "world.json")
        try:
            world = write_world(world_folder, seed, progress=lambda line: console.print(line, markup=False))
        except FileExistsError as error:
            raise UserError(f"{error}; or choose another folder with --out") from error
        if before is not None and before == _written(world_folder / "world.json"):
            phases.reused.add("world")
        console.print(f"pictures and LLaVA JSON files in {world.folder}", soft_wrap=True)
    return Place(out, models, world, seed)


def _written(path: Path) -> int | None:
    """When a file was written, ns; None: there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def run_stage(recipe: Recipe, console: Console) -> bool:
    """Train one stage, go on with it, or take it as it is when it is finished. True when it was finished already.

    A stage made with other settings is replaced: the demo's folder is the demo's own.
    """
    folder = Path(recipe.output) / recipe.name
    old = folder / "recipe.yaml"
    if old.is_file() and (differences(load_recipe(old), recipe) or _projector_changed(folder, recipe)):
        shutil.rmtree(folder)
    finished = (folder / "final" / MANIFEST).is_file()
    train(recipe, resume=old.is_file(), console=console)
    if not finished and recipe.model.projector is not None:
        write_json(folder / "projector_from.json", _projector_hash(recipe))
    return finished


def _projector_hash(recipe: Recipe) -> str | None:
    if recipe.model.projector is None:
        return None
    return sha256(Path(recipe.model.projector) / "final" / "projector.safetensors")


def _projector_changed(folder: Path, recipe: Recipe) -> bool:
    """Whether a finished stage 2 was made from another projector than the one that is there now."""
    note = folder / "projector_from.json"
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")) != _projector_hash(recipe)


def _train_and_score(
    place: Place, phases: Phases, console: Console
) -> tuple[dict[str, Scores], dict[str, dict[str, Any]]]:
    """Scores before training, after each stage, and with other images; refinement curves of both stages."""
    one, two = place.recipe(1, place.out), place.recipe(2, place.out)
    questions = place.records(place.world.eval)
    columns: dict[str, Scores] = {}

    def measured(name: str, key: str, load: Callable[[], Loaded], **kwargs: Any) -> None:
        columns[name] = _cached(place.out / "scores" / f"{key}.json", load, place, two, questions, console, **kwargs)

    with phases.phase("answers before training"):
        # A fresh projector: the pictures reach the LLM as noise.
        fresh = two.model_copy(update={"model": two.model.model_copy(update={"projector": None})})
        measured("before training", "before", lambda: _fresh(fresh))
    with phases.phase("stage 1: the projector learns captions"):
        if run_stage(one, console):
            phases.reused.add("stage 1: the projector learns captions")
    with phases.phase("answers after stage 1"):
        measured("after stage 1", "stage1", lambda: load_trained(place.out / "stage1", CPU)[0], captions=True)
    with phases.phase("stage 2: projector and LoRA learn questions"):
        if run_stage(two, console):
            phases.reused.add("stage 2: projector and LoRA learn questions")
    with phases.phase("answers after stage 2"):
        measured("after stage 2", "stage2", lambda: load_trained(place.out / "stage2", CPU)[0], captions=True)
        measured("other image", "shuffled", lambda: load_trained(place.out / "stage2", CPU)[0], shuffle=place.seed)
    return columns, {stage: refinement_of(place.out / stage) for stage in ("stage1", "stage2")}


def _fresh(recipe: Recipe) -> Loaded:
    import transformers

    transformers.set_seed(recipe.seed)
    loaded = load_base(recipe, CPU)
    loaded.model.eval()
    return loaded


def _cached(
    path: Path,
    load: Callable[[], Loaded],
    place: Place,
    recipe: Recipe,
    questions: list[Record],
    console: Console,
    *,
    captions: bool = False,
    shuffle: int | None = None,
) -> Scores:
    """Scores from ``path`` when they are of this very model and data, else measured and written there."""
    stamp = {
        "world": sha256(place.world.eval),
        "models": [sha256(p) for p in sorted(place.models.rglob("*.safetensors"))],
        "bundles": [
            sha256(p) for p in (place.out / s / "final" / MANIFEST for s in ("stage1", "stage2")) if p.is_file()
        ]
        if path.stem != "before"
        else [],
    }
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["stamp"] == stamp:
            return Scores(**old["scores"])
    loaded = load()
    with _bar(console) as bar:
        task = bar.add_task("questions", total=len(questions))
        result = evaluate(
            loaded,
            recipe,
            questions,
            batch_size=EVAL_BATCH,
            shuffle_images=shuffle,
            progress=lambda n: bar.advance(task, n),
        )
    scores = Scores(result.accuracy, result.counts, caption_score(loaded, recipe, place) if captions else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"stamp": stamp, "scores": vars(scores)})
    return scores


def caption_score(loaded: Loaded, recipe: Recipe, place: Place) -> float:
    """Mean F1 of held-out captions, asked for as in stage 1."""
    records = place.records(place.world.eval_captions)
    chat = chat_format(recipe, loaded)
    references = [chat.reference(record) for record in records]
    texts = answer(
        loaded,
        chat,
        records,
        image_fit=recipe.data.image_fit,
        batch_size=EVAL_BATCH,
        max_new_tokens=answer_length(loaded, references),
    )
    return sum(caption_f1(text, ref) for text, ref in zip(texts, references, strict=True)) / len(records)


def refinement_of(run: Path) -> dict[str, Any]:
    """First and last refinement curve in a run's log, as ``{"start": …, "end": …}``."""
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    curves = [line["refinement"] for line in lines if "refinement" in line]
    return {"start": curves[0], "end": curves[-1]} if curves else {}


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    )


def _report(
    place: Place,
    columns: dict[str, Scores],
    curves: dict[str, dict[str, Any]],
    phases: Phases,
    console: Console,
) -> None:
    console.rule("[bold]result", align="left")
    instruct = json.loads(place.world.eval.read_text(encoding="utf-8"))
    by_chance = chance(instruct)
    last = columns["after stage 2"]
    by_chance[ALL] = sum(by_chance[kind] * last.counts[kind] for kind in by_chance) / last.counts[ALL]
    console.print("\nheld-out images, exact match by question type")
    shares = {"chance": by_chance} | {name: scores.accuracy for name, scores in columns.items()}
    console.print(accuracy_table(shares, last.counts))
    console.print(
        "chance: the best constant answer to each type. other image: the model after stage 2, shown another picture.\n"
    )
    captions = {name: s.caption_f1 for name, s in columns.items() if s.caption_f1 is not None}
    console.print("caption F1: " + ", ".join(f"{name} {value:.3f}" for name, value in captions.items()) + "\n")
    if any(curves.values()):
        console.print(refinement_table(curves))
        console.print(
            "Share of visual tokens whose nearest word is in the sample's own text, minus the same share against "
            "other samples' texts. BASIC's premise is that v̂ (the target) stands above v (the projector's output).\n"
            + _verdict(curves)
        )
    console.print(_times(phases))
    run = place.out / "stage2"
    console.print(f"\nrun folder: {run}", soft_wrap=True)
    console.print(f"ask it about a picture:\n  {ask_line(run, place, instruct)}", soft_wrap=True, markup=False)


def _verdict(curves: dict[str, dict[str, Any]]) -> str:
    """What the curve after training says of BASIC's premise, in a sentence."""
    score = curves["stage2"]["end"]["score"] or [0.0]
    if score[-1] > score[0]:
        return "Here it does after stage 2; --ablate measures what BASIC changes.\n"
    return (
        "Here it doesn't: in so small a world the demo shows the machinery, not a gain; --ablate measures what BASIC "
        "changes.\n"
    )


def refinement_table(curves: dict[str, dict[str, Any]]) -> Table:
    """The refinement curves: a row for each stage's start and end, a column for v, each layer and v̂."""
    first = next(curve for stage in curves.values() for curve in stage.values())
    table = Table(title="refinement curve", title_justify="left", header_style="bold")
    table.add_column("")
    for name in first["places"]:
        table.add_column("v̂" if name == "target" else name, justify="right")
    for stage, pair in curves.items():
        for when, curve in pair.items():
            score = curve["score"] or []
            table.add_row(f"{stage}, {when}", *(f"{value:+.3f}" for value in score))
    return table


def _times(phases: Phases) -> Table:
    table = Table(title="time", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, seconds in phases.seconds.items():
        note = " (reused)" if name in phases.reused else ""
        table.add_row(name + note, f"{seconds:.1f} s")
    table.add_row("total", f"{sum(phases.seconds.values()):.1f} s", style="bold")
    return table


def ask_line(run: Path, place: Place, instruct: list[dict[str, Any]]) -> str:
    """A shell line that asks the trained model one of the held-out questions."""
    chosen = next((r for r in instruct if r["question_type"] == "colour"), instruct[0])
    question = chosen["conversations"][0]["value"].replace("<image>", "").strip()
    return shlex.join(["basic-lite", "chat", str(run), str(place.world.images / chosen["image"]), question])
