"""``basic-lite check``: everything about data that a person should know before a training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from basic_lite.console import Say, Sheet, counter, counting, quiet_libraries, show, speaker
from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import DataReport, check_data
from basic_lite.data.held_out import can_hold_out, hold_out
from basic_lite.data.names import EVAL, TRAIN
from basic_lite.data.problems import BadImage
from basic_lite.data.prompts import with_prompts_of_training
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.data.split_column import parts_of
from basic_lite.data.unknown_words import unknown_words
from basic_lite.endings import RECIPE_ENDINGS
from basic_lite.errors import UserError, all_at_once, enough_memory
from basic_lite.printable import printable
from basic_lite.recipe import load_recipe
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.tools.check.example_places import first_places
from basic_lite.tools.check.findings import (
    Example,
    Finding,
    lengths,
    of_parts,
    of_pictures,
    of_records,
    of_sizes,
    of_texts,
    of_unknown_words,
)
from basic_lite.tools.check.page import COMMAND, write_check
from basic_lite.tools.check.survey import Pictures, survey
from basic_lite.tools.check.texts import Texts
from basic_lite.tools.data.command import (
    ENOUGH_TO_HOLD_OUT,
    HELD_OUT,
    NOTHING_HELD_OUT,
    encoder_of,
    frontend_or_why,
    plain_section,
    with_changes,
    with_question,
)
from basic_lite.tools.data.look import look
from basic_lite.tools.data.write import from_here, legal_name
from basic_lite.tools.data_argument import data_source
from basic_lite.tools.report.html import require_own

if TYPE_CHECKING:
    from basic_lite.model.frontend import Frontend

_ORDER = ("bad", "look", "fact")


@dataclass(frozen=True)
class Data:
    """What is looked at.

    Attributes:
        recipe: with the data in it.
        frontend: the model's tokenizer and image processor; None: they aren't here, and ``why`` says why.
        held: records for evaluation that are a file of their own; None: there are none.
        held_out: the share of the records that a run would keep for evaluation; 0: none.
        held_out_from: so many records there must be for that.
    """

    name: str
    recipe: Recipe
    train: Records
    held: Records | None
    frontend: "Frontend | None"
    why: str
    held_out: float
    held_out_from: int


def check(
    path: Path,
    *,
    base: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    model: str | None = None,
    console: Console | None = None,
) -> list[Finding]:
    """Look at data, say what was found, and write the page.

    Args:
        path: data, or a recipe that names it.
        base: the recipe that data is looked at for; a file or the name of a shipped one.
        out: the page's file; None: ``NAME_check.html`` here.
        model: a language model that answers without the pictures; None: none does.

    Raises:
        UserError: there is no data, nothing in it can be used, or the page can't be written.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    say = speaker(console)
    data = opened(path, base, overrides)
    target = out or Path(f"{data.name}_check.html")
    require_own(target, COMMAND)
    if data.frontend is None:
        say(f"note: lengths in tokens and what the encoder loses aren't known: {data.why}")
    say(f"reading {len(data.train):,} records …")
    sources = [data.train, *([data.held] if data.held is not None else [])]
    reports = [read(data, records, say) for records in sources]
    report = reports[0]
    # Before the pictures, which take longer: a model that doesn't load, or has no memory, is told at once.
    blind = [] if model is None else [without_picture(data, report, model, say)]
    pictures, texts = Pictures(), Texts(_special(data.frontend))
    met = []
    for source, (records, one) in enumerate(zip(sources, reports, strict=True)):
        with counting(Console(stderr=True), "looking at pictures and texts", len(one.kept)) as count:
            about = texts if source == 0 else None
            met.append(survey(records, one.kept.tolist(), pictures, about, source, one.pictures, count))
    sides = (met[0], met[1]) if data.held is not None else split(data, report, pictures)
    found = sorted(findings(data, reports, pictures, texts, sides), key=lambda one: _ORDER.index(one.kind))
    found = [*blind, *found]
    unread, left = len(pictures.problems), len(report.kept) - len(broken_of(report, pictures))
    of_them = f", {unread:,} of them unreadable" if unread else ""
    facts = [
        f"{left:,} of {report.total:,} records can be used; {len(pictures.places):,} pictures{of_them}",
        f"looked at as the recipe {data.recipe.name} would train on it",
    ]
    say(facts[0])
    show(console, _table(found, sources, pictures))
    write_check(target, data.name, facts, found, sources, pictures)
    console.print(printable(f"page with examples: {target}"), soft_wrap=True, markup=False)
    return found


def opened(path: Path, base: str, overrides: Sequence[str]) -> Data:
    """The records that a path means, and the recipe they are looked at for.

    Raises:
        UserError: there is no data, or the recipe is wrong.
    """
    given = {text.partition("=")[0].strip() for text in overrides}
    is_data = path.suffix.lower() not in RECIPE_ENDINGS
    if not is_data:
        recipe, name = load_recipe(path.as_posix(), list(overrides)), path.stem
    else:
        name = legal_name(path)
        section = from_here(data_source(path))
        evaluated = any(key.startswith("data.eval") or key == "data.held_out" for key in given)
        alone = {} if evaluated else NOTHING_HELD_OUT
        recipe = with_changes(base, {"name": name, "data.train": plain_section(section), **alone}, overrides)
        train = recipe.data.train
        if not isinstance(train, list) and train.prompt is None:
            train = with_question(train, look(train), recipe, load_recipe(base))
            recipe = changed_recipe(recipe, {"data.train": train})
    own_file = recipe.data.eval and with_prompts_of_training(recipe.data.eval, recipe.data)
    sections = {TRAIN: recipe.data.train} | ({EVAL: own_file} if own_file else {})
    looks = [partial(load_records, section, root=Path.cwd(), key=key) for key, section in sections.items()]
    records, *held = all_at_once(*looks)
    frontend, why = frontend_or_why(recipe)
    share, least = recipe.data.held_out or 0.0, 0
    if is_data and "data.held_out" not in given:
        # As `basic-lite data` would hold out.
        share, least = share or HELD_OUT, ENOUGH_TO_HOLD_OUT
    return Data(name, recipe, records, held[0] if held else None, frontend, why, share, least)


def read(data: Data, records: Records, say: Say) -> DataReport:
    """Read and tokenise all records of one side; those with a problem are left out, not refused.

    Raises:
        UserError: none can be used.
    """
    kinder = {"bad_records": "drop", "too_long": "drop", "check_images": "exists"}
    section = data.recipe.data.model_copy(update=kinder)
    name = TRAIN if records is data.train else EVAL
    return check_data(
        records, encoder_of(data.recipe, data.frontend), section, progress=counter(name), say=say, pictures=True
    )


def _special(frontend: "Frontend | None") -> set[str]:
    """The model's special tokens; a single letter is none that a text could hold by mistake."""
    if frontend is None:
        return set()
    added = frontend.tokenizer.added_tokens_decoder.values()
    tokens = {*map(str, frontend.tokenizer.all_special_tokens), *(str(one) for one in added if one.special)}
    return {token for token in tokens if len(token) > 1}


def findings(
    data: Data, reports: Sequence[DataReport], pictures: Pictures, texts: Texts, sides: tuple[set[int], set[int]]
) -> Iterator[Finding]:
    """All but what a language model says.

    Args:
        reports: of the training data, and of the file for evaluation where there is one.
        sides: numbers of the pictures that are trained on, and of those that are held out.
    """
    section, frontend, report = data.recipe.data, data.frontend, reports[0]
    for source, one in enumerate(reports):
        yield from of_records(one, section, broken_of(one, pictures), source)
    yield from of_parts(parts_of(data.train))
    yield from of_texts(texts, len(report.kept))
    same, near = pictures.groups()
    yield from of_pictures(pictures, same, near, sides)
    if frontend is not None:
        from basic_lite.model.frontend import input_side  # seconds, which are spent by now

        chat = ChatFormat.of(section.template, frontend)
        yield from of_unknown_words(unknown_words(chat, data.train, report.kept, section.max_length))
        yield lengths(report, frontend.tokens_per_image)
        if (side := input_side(frontend.image_processor)) is not None:
            yield from of_sizes(pictures, side, frontend.tokens_per_image, section)


def split(data: Data, report: DataReport, pictures: Pictures) -> tuple[set[int], set[int]]:
    """Numbers of the pictures that a run would train on, and of those that it would hold out; none if it can't."""
    # A run leaves out records whose pictures can't be read, and then holds out.
    broken = broken_of(report, pictures)
    whole = report.only(np.array([index not in broken for index in report.kept.tolist()], dtype=bool))
    if not data.held_out or len(whole.kept) < data.held_out_from or not can_hold_out(whole):
        return set(), set()
    trained, held = (
        {pictures.numbers[key] for keys in part.pictures or [] for key in keys}
        for part in hold_out(whole, data.held_out, data.recipe.seed)
    )
    return trained, held


def broken_of(report: DataReport, pictures: Pictures) -> dict[int, BadImage]:
    """The kept records with a picture that can't be read, each with what is wrong with the first such one."""
    assert report.pictures is not None
    found = {}
    for index, keys in zip(report.kept.tolist(), report.pictures, strict=True):
        wrong = [pictures.problems[number] for key in keys if (number := pictures.numbers[key]) in pictures.problems]
        if wrong:
            found[index] = wrong[0]
    return found


def without_picture(data: Data, report: DataReport, model: str, say: Say) -> Finding:
    """What a language model makes of the answers without the pictures.

    Raises:
        UserError: no record has a picture, a question and an answer, or the model can't be opened or has no room.
    """
    from basic_lite.tools.check.blind import blind  # loads a model's code, for this option alone

    with enough_memory("name a smaller model with --model, or leave the option out", f"with {model}"):
        seen = blind(data.train, report.kept[report.n_images > 0].tolist(), model)
    if not seen.answers:
        raise UserError("--model: no record has a picture, a question and an answer; leave the option out")
    say(f"{model} read {seen.answers} answers without their pictures, on {seen.on}")
    share = seen.right / seen.answers
    return Finding(
        "look" if share >= 0.3 else "fact", "answered blind", f"{share:.0%}",
        f"of {seen.answers} answers {model} finds each word likeliest without the picture; its loss on them is "
        f"{seen.loss:.2f} nats a token",
        "take questions that need the picture" * (share >= 0.3),
        [Example("", (place, 0)) for place in seen.places[:12]],
    )  # fmt: skip


def _table(found: Sequence[Finding], sources: Sequence[Records], pictures: Pictures) -> Sheet:
    what = "what it is, and what to do"
    table = Sheet(("finding", "how much", what), text=("how much",), notes=(what,))
    for before, one in zip([None, *found], found, strict=False):
        if before is not None and before.kind != one.kind:
            table.end_section()
        text = f"{one.text}; {one.mend}" if one.mend else one.text
        if one.kind != "fact" and (first := first_places(one, sources, pictures)):
            text = f"{text}. {one.order}: {first}"
        table.add(one.name, one.count, text, style="bold" if one.kind == "bad" else "")
    return table
