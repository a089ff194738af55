"""``basic-lite data PATH``: what is there, three samples of it, and a recipe that trains on it."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from basic_lite.choices import require_place
from basic_lite.console import Say, command_line, counter, quiet_libraries, shows_colours, speaker
from basic_lite.data.chat import ChatFormat, Encoded, Encoder
from basic_lite.data.check import DataReport, check_data, listing
from basic_lite.data.columns import candidates, has_text, mapping_example, plain_name
from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.folder_source import FolderSource
from basic_lite.data.guess import image_dir_of
from basic_lite.data.held_out import can_hold_out
from basic_lite.data.opened import cache_folder
from basic_lite.data.problems import BadImage
from basic_lite.data.prompts import prompts_of
from basic_lite.data.record import Record
from basic_lite.data.sources import load_records
from basic_lite.data.split_column import SPLIT_MEND, counted, parts_of
from basic_lite.data.unknown_words import unknown_words
from basic_lite.errors import UserError
from basic_lite.outside import at_home, read_text
from basic_lite.printable import printable
from basic_lite.recipe import find_recipe, load_recipe, shipped_recipes
from basic_lite.recipe.load import read_override
from basic_lite.recipe.rules import changed_recipe, steps_an_epoch, steps_of
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.resampling import LEAST_SAMPLES
from basic_lite.tools.data.closing import asking, held_out_count, say_next
from basic_lite.tools.data.look import Found, look, short_answers
from basic_lite.tools.data.write import from_here, head_of, legal_name, recipe_text, require_new
from basic_lite.tools.data_argument import data_source
from basic_lite.tools.sample import render_sample
from basic_lite.training.files import saving
from basic_lite.training.sanity import MANY_EPOCHS
from basic_lite.whole_file import write_whole

if TYPE_CHECKING:
    from basic_lite.model.frontend import Frontend

# Optimizer steps that small data should get, and the most epochs for that.
_STEPS, _MOST_EPOCHS = 100, MANY_EPOCHS
# What is kept for evaluation, of how many records at least, and how often a run evaluates.
HELD_OUT, ENOUGH_TO_HOLD_OUT, _EVALUATIONS = 0.1, 20, 5
# Whole pictures are held out: of few, that may be this many times the share, and no more.
_MOST_HELD_OUT = 2
# Of held-out questions with short answers so many are asked at each evaluation.
_MOST_ASKED = 50
_SHOWN_PROBLEMS = 10
# Keys, beside `training.eval_every`, that need held-out data, and what turns them off.
_OFF = {"training.eval_generate": 0, "training.metric_for_best_model": "off"}
# A recipe without data for evaluation.
NOTHING_HELD_OUT = {"data.eval": None, "training.eval_every": None, **_OFF}
# Records that are looked at for short answers.
_LOOKED_AT = 200


def data(
    path: Path,
    *,
    base: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Look at the data, say what was found, and write a recipe for it. Returns the recipe's path.

    Args:
        base: the recipe that is taken as it is, but for the data; a file or the name of a shipped one.
        overrides: keys of the recipe to change, as ``key.path=value``.

    Raises:
        UserError: no data at that path, nothing usable in it, or the recipe can't be written.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    say = speaker(console)
    require_place(path, overrides)
    name = legal_name(path)
    given = {text.partition("=")[0].strip() for text in overrides}
    changes: dict[str, Any] = {"name": name, "data.train": plain_section(from_here(data_source(path)))}
    held_out = "data.held_out" in given
    own = load_recipe(base)
    # What the recipe itself sets of the keys that need held-out data.
    needing = {key: getattr(own.training, key.removeprefix("training.")) for key in _OFF}
    needing = {key: value for key, value in needing.items() if value not in (0, "off", "auto")}
    if not any(key.startswith("data.eval") for key in given):
        off = {"training.eval_every": None, **{key: _OFF[key] for key in needing}}
        changes |= {"data.eval": None} | ({} if held_out else off)
    elif not held_out:
        changes["data.held_out"] = None
    recipe = with_changes(base, changes, overrides)
    target = out or Path(f"{recipe.name}.yaml")
    require_new(target, overwrite=overwrite)
    section = recipe.data.train
    if isinstance(section, list):
        raise UserError("data.train is a list of sources here, and one is looked at; leave that override out")
    if section.columns and section.image_dir is None and (folder := image_dir_of(section)):
        # Without the names of the columns it could not be looked for.
        section = section.model_copy(update={"image_dir": folder})
    found = look(section.model_copy(update={"prompt": None}))
    section = with_question(section, found, recipe, own)
    recipe = changed_recipe(recipe, {"data.train": section})
    report = _check_and_show(recipe, found, console, say)
    fitted = _fitted(recipe, found, report, given, say)
    if fitted.get("data.held_out"):
        fitted |= {key: value for key, value in needing.items() if key not in given}
    recipe = changed_recipe(recipe, fitted)
    changes |= fitted
    text = _text(base, recipe, changes, overrides, path, target, found, asking(recipe, report))
    with saving(target, "Make room, or name another file with --out"):
        write_whole(target, text)
    say_next(recipe, found.records, report, target, say, console)
    return target


def with_question(section: SourceSection, found: Found, recipe: Recipe, own: Recipe) -> SourceSection:
    """A source of captions with what is asked before each; any other as it is.

    Args:
        own: the recipe that was taken. The question that it has itself comes first: its model may know it best.
    """
    if not found.captions or section.prompt is not None or recipe.data.template == "plain":
        return section
    theirs = None if isinstance(own.data.train, list) else own.data.train.prompt
    return section.model_copy(update={"prompt": theirs or list(found.prompts)})


def _fitted(recipe: Recipe, found: Found, report: DataReport, given: set[str], say: Say) -> dict[str, Any]:
    """Settings that follow from how many records there are and what they say, where the user hasn't given them."""
    changes: dict[str, Any] = {}
    evaluated = recipe.data.eval is not None
    if not evaluated and "data.held_out" not in given:
        share = recipe.data.held_out or HELD_OUT
        why_none = _why_none_held_out(recipe, report, share)
        if why_none:
            say(
                f"note: {why_none}, so none is kept for evaluation; name a file of your own for it: {_own_file(recipe)}"
            )
        changes["data.held_out"] = None if why_none else share
    share = changes.get("data.held_out", recipe.data.held_out) or 0.0
    held = held_out_count(report, share, recipe.seed)
    trained = len(report.kept) - held
    if not given & {"training.epochs", "training.max_steps"}:
        epochs = fitted_epochs(recipe, trained)
        if epochs != recipe.training.epochs:
            changes["training.epochs"] = epochs
            recipe = changed_recipe(recipe, {"training.epochs": epochs})
    if share and "training.eval_every" not in given:
        changes["training.eval_every"] = max(1, round(steps_of(recipe, trained) / _EVALUATIONS))
    # A long answer is hardly ever right word for word, and the plain template has no questions.
    asks = held >= LEAST_SAMPLES and recipe.data.template != "plain" and "training.eval_generate" not in given
    if asks and short_answers(found.records, report.kept[:_LOOKED_AT]):
        changes["training.eval_generate"] = min(held, _MOST_ASKED)
    return changes


def _own_file(recipe: Recipe) -> str:
    """The overrides that name other data for evaluation; of captions, with the question that is asked of them."""
    prompts = () if isinstance(recipe.data.train, list) else prompts_of(recipe.data.train)
    return command_line(["data.eval.path=FILE", *(f"data.eval.prompt={prompt}" for prompt in prompts[:1])])


def _why_none_held_out(recipe: Recipe, report: DataReport, share: float) -> str | None:
    """Why a share of the records can't be kept for evaluation; None: it can."""
    count = len(report.kept)
    if count < ENOUGH_TO_HOLD_OUT:
        records = "there is 1 record" if count == 1 else f"there are {count} records"
        return f"{records}, and from {ENOUGH_TO_HOLD_OUT} on {share:.0%} of them are held out"
    if not can_hold_out(report):
        return "all records hang together by their pictures"
    if held_out_count(report, share, recipe.seed) > _MOST_HELD_OUT * share * count:
        return "so many records share a picture that too few would be left to train on"
    return None


def fitted_epochs(recipe: Recipe, records: int) -> float:
    """The recipe's epochs, or as many more as give small data enough steps."""
    if recipe.training.max_steps is not None:
        return recipe.training.epochs
    wanted = math.ceil(_STEPS / steps_an_epoch(recipe, records))
    return max(recipe.training.epochs, float(min(wanted, _MOST_EPOCHS)))


def plain_section(section: SourceSection) -> dict[str, Any]:
    """What a source says, as a recipe writes it."""
    return dict(section.model_dump(exclude_defaults=True))


def with_changes(base: str, changes: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe with the changes, and then the user's overrides."""
    return load_recipe(base, [*(f"{key}={json.dumps(value)}" for key, value in changes.items()), *overrides])


class Words:
    """Stands where the tokenizer belongs: conversations are put in order, and nothing is tokenised."""

    def encode(self, record: Record, max_length: int) -> Encoded:
        """One token for a whole conversation."""
        conversation(record)
        return Encoded([0], [0], len(record.images))


def encoder_of(recipe: Recipe, frontend: "Frontend | None") -> Encoder:
    """What makes tokens of records; words, where the model's files aren't here."""
    return Words() if frontend is None else ChatFormat.of(recipe.data.template, frontend)


def _check_and_show(recipe: Recipe, found: Found, console: Console, say: Say) -> DataReport:
    """Read everything, open every picture, say what was found, show samples."""
    section = recipe.data.model_copy(update={"bad_records": "drop", "too_long": "drop", "check_images": "open"})
    assert not isinstance(section.train, list)
    records = found.records if section.train.prompt is None else load_records(section.train, root=Path.cwd())
    frontend, reason = frontend_or_why(recipe)
    encoder = encoder_of(recipe, frontend)
    say(f"found: {found.form}")
    for line in _meaning(found):
        say(line)
    if section.train.image_dir is not None:
        say(f"pictures: {os.path.abspath(at_home(section.train.image_dir))}")
    for note in records.notes:
        say(f"note: {note}")
    if parts := parts_of(records):
        say(f"note: a run trains on all parts alike, whatever the column 'split' says ({counted(parts)}); {SPLIT_MEND}")
    say(f"reading {len(records):,} records, opening their pictures …")
    report = check_data(
        records, encoder, section, progress=counter("data"), say=say, cache=cache_folder(), pictures=True
    )
    for line in _counts(report, recipe.data.max_length):
        say(line)
    if frontend is None:
        say(f"samples, as plain text; not as the model gets them, since its files can't be read: {reason}")
    else:
        assert isinstance(encoder, ChatFormat)
        for unknown in unknown_words(encoder, records, report.kept, recipe.data.max_length):
            say(f"note: {unknown}")
        say(f"samples, as the model gets them{' (it learns what is green)' if shows_colours(console) else ''}:")
    for index in _spread(len(report.kept)):
        record = records[int(report.kept[index])]
        console.print()
        say(record.place)
        if frontend is None:
            console.print(_words_of(record))
        else:
            encoded = encoder.encode(record, recipe.data.max_length)
            console.print(render_sample(encoded, frontend.tokenizer, frontend.image_token_id))
    console.print()
    return report


def frontend_or_why(recipe: Recipe) -> "tuple[Frontend | None, str]":
    """The model's tokenizer and image processor, or why they can't be had."""
    # Not above: data that can't be read is told before the seconds that this takes.
    from basic_lite.model.frontend import load_frontend

    try:
        return load_frontend(recipe.model), ""
    except UserError as error:
        return None, str(error).splitlines()[0]


def _meaning(found: Found) -> list[str]:
    """Which columns are read as what."""
    if isinstance(found.records.sources[0], FolderSource):
        return []
    ours = {"answer": "text" if found.captions else "answer", "input": "rest of the question"}
    read = [f"{ours.get(key, key)} is {theirs!r}" for key, theirs in found.columns.items()]
    lines = [f"columns: {', '.join(read)}"] if read else []
    if found.unused and not has_text(found.columns):
        present = [*found.columns.values(), *found.unused]
        lines.append(
            f"none of the columns {', '.join(map(repr, found.unused))} has a name that says which is the text; name "
            f"them, as in {mapping_example(found.columns, present)}"
        )
    elif found.unused:
        paired = found.columns.keys() & {"question", "answer"}
        free = "image" if "image" not in found.columns else "answer" if paired else "conversations"
        # Nobody wants to learn the worse one of two answers.
        others = [one for one in candidates(free, found.unused) if plain_name(one) != "rejected"]
        mend = f" (to take another one: {command_line([f'data.train.columns.{free}={others[0]}'])})" if others else ""
        lines.append(f"columns that aren't used: {', '.join(map(repr, found.unused))}{mend}")
    return lines


def _counts(report: DataReport, max_length: int) -> list[str]:
    pictures = int(report.n_images.sum())
    open_ = f"{pictures:,} pictures that open" if pictures != 1 else "1 picture that opens"
    lines = [f"records: {len(report.kept):,} of {report.total:,} can be used, with {open_}"]
    if len(report.kept) and not pictures:
        mend = "name their column: data.train.columns.image=…"
        lines.append(f"note: none of them has a picture, so `train` won't start; {mend}")
    if cut := int((report.cut > 0).sum()):
        records = "1 record is" if cut == 1 else f"{cut:,} records are"
        lines.append(
            f"note: {records} longer than data.max_length={max_length}, so the end of the text is cut off "
            f"({int(report.cut.sum()):,} tokens in all); raise that key, which takes more memory, or shorten the text"
        )
    if report.problems:
        bad = sum(isinstance(problem, BadImage) for problem in report.problems)
        lines.append(f"{len(report.problems):,} can't be used{f', {bad:,} because of a picture' if bad else ''}:")
        lines += listing(report.problems, _SHOWN_PROBLEMS)
    return lines


def _spread(count: int) -> list[int]:
    """The first, the middle and the last."""
    return sorted({0, count // 2, count - 1}) if count else []


def _words_of(record: Record) -> Text:
    text = Text()
    for turn in conversation(record):
        style = "bold green" if turn.role == "gpt" and turn.learned else "dim"
        text.append(f"{turn.role}: ", style="bold")
        text.append(printable(turn.text.replace(IMAGE, "<image>").strip()) + "\n", style=style)
    text.rstrip()
    return text


def _text(
    base: str,
    recipe: Recipe,
    changes: dict[str, Any],
    overrides: Sequence[str],
    path: Path,
    target: Path,
    found: Found,
    asked: str,
) -> str:
    """The written recipe.

    Args:
        asked: what ``training.eval_generate`` does; empty: nothing.
    """
    changed = dict(changes)
    for text in overrides:
        key, _, value = text.partition("=")
        changed[key.strip()] = read_override(value)
    changed = {key: value for key, value in changed.items() if not key.startswith("data.train.")}
    assert not isinstance(recipe.data.train, list)
    changed |= {"data.train": plain_section(recipe.data.train), "name": recipe.name}
    file = find_recipe(base)
    text = read_text(file, encoding="utf-8-sig")
    head = [
        f"basic-lite train {command_line([target.as_posix()])}",
        f"Written by `basic-lite data` for {_one_line(path.as_posix())}: {_one_line(found.form)}.",
        f"The rest is from the recipe {file.stem}. `basic-lite keys` lists every key.",
    ]
    head += [f"eval_generate: {asked}."] if asked else []
    shipped = file.resolve() in shipped_recipes()
    head += [line for line in head_of(text) if not shipped or line.startswith("Card:")]
    named = command_line([target.as_posix()])
    head = [line.replace(f"recipes/{file.name}", named) if shipped else line for line in head]
    return recipe_text(text, head, changed)


def _one_line(text: str) -> str:
    """Text that can stand in a comment."""
    return "".join(one if one.isprintable() else "?" for one in text)
