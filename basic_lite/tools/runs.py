"""``basic-lite runs``: the runs in a folder, one row each. Files are read, no torch is needed."""

import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from basic_lite.choices import mend_of_missing
from basic_lite.errors import UserError
from basic_lite.outside import CHANGED, as_object, is_finite, read_text
from basic_lite.printable import printable
from basic_lite.recipe.yaml import read_document
from basic_lite.scoring.metrics.estimate import Estimate, Share, estimate_of
from basic_lite.sizes import size_text
from basic_lite.tools.score import ALL, NOT_KNOWN, NOT_TRAINED_ON, TRAINED_ON
from basic_lite.tools.summaries import summaries_of
from basic_lite.training.best_text import best_of
from basic_lite.training.data_json import UNKNOWN, known_before
from basic_lite.training.files import sha256
from basic_lite.training.lock import is_held
from basic_lite.training.log_lines import ReadLog, damaged_text, read_log
from basic_lite.training.loss_text import loss_text
from basic_lite.training.places import (
    BEFORE_A_RUN,
    HELD_OUT,
    LOCK,
    MANIFEST,
    RECIPE_JSON,
    RECIPE_YAML,
    checkpoints_of,
    is_finished,
    is_run,
    later,
    newest_first,
    read_json,
)

# Runs lie in the folder, or one further down as in runs/demo/stage1.
DEPTH = 2
# The score to go by is the first of these that a summary has.
_KINDS = {NOT_TRAINED_ON: "not recognised as trained on", NOT_KNOWN: UNKNOWN, TRAINED_ON: "all trained on"}
EXACT = "exact"  # the metric that summaries of older versions don't name


@dataclass(frozen=True)
class RunRow:
    """One run, in words."""

    path: Path
    state: str
    changed: str
    size: str
    held_out: str  # the last held-out loss; nothing: there is none
    matches: tuple[str, ...]  # shares of exact matches, each with what it is of
    others: tuple[str, ...]  # mean scores by other metrics, each with its name
    started_from: str
    best: str = ""  # the best step, if it is kept
    damaged: int = 0  # lines of its log that are passed over

    @property
    def state_in_full(self) -> str:
        """With what is damaged of the log."""
        return "; ".join(filter(None, (self.state, damaged_text(self.damaged))))

    @property
    def scores(self) -> tuple[str, ...]:
        """All of them in words."""
        matches = (f"exact match {one}" for one in self.matches)
        return tuple(text for text in (self.held_out, *matches, *self.others, self.best) if text)

    @property
    def score(self) -> str:
        """The same in a line."""
        return "; ".join(self.scores)


def show_runs(folder: Path, console: Console | None = None) -> list[RunRow]:
    """Print the runs in a folder.

    Raises:
        UserError: there is no such folder.
    """
    console = console or Console(highlight=False)
    rows: list[RunRow] = []
    for run in runs_in(folder):
        with suppress(FileNotFoundError):  # a start that was refused has gone since
            rows.append(row_of(run))
    lines = _lines(rows, console.width if console.is_terminal else None)
    for line in lines if rows else [f"no runs in {folder}"]:
        console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
    return rows


def runs_in(folder: Path, *, links: bool = True) -> list[Path]:
    """The run folders in a folder and its folders, or the folder itself where it is a run.

    Args:
        links: also behind symbolic links.

    Raises:
        UserError: there is no such folder.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder that holds your runs (the recipe's `output`), or one run")
    if not folder.is_dir():
        mend = mend_of_missing(folder) or "give the folder that holds your runs (the recipe's `output`), or one run"
        raise UserError(f"there is no folder {folder}; {mend}")
    return [path for path, run in folders_of(folder, links=links) if run]


def folders_of(folder: Path, depth: int = DEPTH, *, links: bool) -> Iterator[tuple[Path, bool]]:
    """A folder and those in it, each with whether it is a run; inside a run other runs alone are looked at."""
    try:
        run = is_run(folder) or is_running(folder)
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and (links or not path.is_symlink()))
    except (PermissionError, FileNotFoundError):  # another user's, or it has gone since
        return
    yield folder, run
    for path in inside if depth else []:
        if not run or is_run(path) or is_running(path):
            yield from folders_of(path, depth - 1, links=links)


def is_running(folder: Path) -> bool:
    """Whether a process trains in a folder now. Other programs call their lock file the same: theirs is left alone."""
    lock = folder / LOCK
    ours = lock.is_file() and (is_run(folder) or all(path.name in BEFORE_A_RUN for path in folder.iterdir()))
    return ours and is_held(lock)


def row_of(run: Path, read: ReadLog | None = None) -> RunRow:
    """What there is to say of a run.

    Args:
        read: its log; None: it is read.
    """
    bundles = newest_first(run)
    manifest = as_object(read_json(bundles[0] / MANIFEST)) if bundles else {}
    recipe = recipe_of(run, bundles)
    read = read or read_log(run)
    log = read.rare
    # The latest at the end.
    found = sorted(summaries_of(run, log), key=lambda one: later(one[0], one[1].get("settings")))
    summaries = [summary for _, summary in found]
    size_bytes, changed = size_and_time(run)
    model = as_object(recipe.get("model"))
    return RunRow(
        run,
        _state(run, manifest, recipe, log),
        datetime.fromtimestamp(changed).strftime("%Y-%m-%d %H:%M"),
        size_text(size_bytes),
        _held_out(run, log),
        tuple(_matches(summaries, recipe, manifest.get("step"))),
        tuple(_others(summaries, manifest.get("step"))),
        _started_from(model, as_object(manifest.get("started_from"))),
        best.short if (best := best_of(run, log)) is not None else "",
        read.damaged,
    )


def _started_from(model: dict[str, Any], record: dict[str, Any]) -> str:
    """What the recipe names, and whether the bundle that was taken is still there."""
    named = model.get("start") or (f"projector of {model['projector']}" if model.get("projector") else "")
    bundle = record.get("bundle")
    if not named or not isinstance(bundle, str):
        return named
    manifest = Path(bundle) / MANIFEST
    if not manifest.is_file() and is_running(Path(bundle).parent):
        return f"{named} (training now)"
    if not manifest.is_file():
        return f"{named} (no longer there)"
    return named if sha256(manifest) == record.get("manifest_sha256") else f"{named} (replaced since)"


def size_and_time(path: Path) -> tuple[int, float]:
    """Bytes of a file or of all files below a folder, and when the newest was written. Links count as themselves."""
    found = [path.lstat()]
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # a run goes on while it is looked at
                found.append((Path(folder) / name).lstat())
    times = found[1:] or found
    return sum(one.st_size for one in times), max(one.st_mtime for one in times)


def recipe_of(run: Path, bundles: Sequence[Path]) -> dict[str, Any]:
    """A run's recipe as JSON has it, of its newest bundle or from its folder; empty: neither can be read."""
    if bundles and (recipe := as_object(read_json(bundles[0] / RECIPE_JSON))):
        return recipe
    try:
        return as_object(read_document(read_text(run / RECIPE_YAML), RECIPE_YAML).values)
    except (OSError, UnicodeDecodeError):
        return {}


def _state(run: Path, manifest: dict[str, Any], recipe: dict[str, Any], log: list[dict[str, Any]]) -> str:
    step, total = manifest.get("step"), manifest.get("total_steps")
    if is_running(run):
        now = max((line["step"] for line in log), default=0)
        total = total or as_object(recipe.get("training")).get("max_steps")
        return f"running, step {now}" + (f" of {total}" if total else "")
    if step is None and (is_finished(run) or checkpoints_of(run)):
        return f"damaged: its {MANIFEST} can't be read"
    if is_finished(run):
        return f"finished, {step} {'step' if step == 1 else 'steps'}"
    if checkpoints_of(run):
        return f"stopped at step {step}" + (f" of {total}" if total else "")
    return "ended before its first checkpoint"


def _held_out(run: Path, log: list[dict[str, Any]]) -> str:
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    known = f" ({known})" if (known := known_before(run)) else ""
    return f"held-out loss {loss_text(losses[-1])}{known}" if losses else ""


def _matches(every: Sequence[dict[str, Any]], recipe: dict[str, Any], last: Any) -> Iterator[str]:
    """Shares of exact matches, of answers that weren't trained on if there are any.

    One is of the run's own data, another of other files, since pictures of these that were resized look new.

    Args:
        last: the run's step; what was answered before it says so.
    """
    summaries = [one for one in every if one.get("metric", EXACT) == EXACT]
    own = {HELD_OUT, *_tables_of(recipe)}
    tables = {table for summary in summaries if (table := _table_of(summary))} | own
    for summary in _telling(summaries, own):
        table = _table_of(summary)
        yield from _match(summary, (f" ({short_path(table, tables)})" if table else "") + _earlier(summary, last))


def _others(every: Sequence[dict[str, Any]], last: Any) -> Iterator[str]:
    """The latest score by each metric but exact match."""
    latest = {str(summary.get("metric", EXACT)): summary for summary in every}
    for metric, summary in latest.items():
        named = f" ({Path(_table_of(summary)).name}){_earlier(summary, last)}"
        score, count = (as_object(summary.get(name)).get(ALL) for name in ("score", "counts"))
        if metric != EXACT and (told := _told(summary, named)):
            yield f"{metric} {told}"
        elif metric != EXACT and is_finite(score) and isinstance(count, int):  # an older version's
            yield f"{metric} {score:.1%} of {count}{named}"


def _earlier(summary: dict[str, Any], last: Any) -> str:
    """At which step the answers were given, where the run has gone on since."""
    step = as_object(summary.get("settings")).get("step")
    return f" at step {step:,}" if isinstance(step, int) and isinstance(last, int) and step < last else ""


def _telling(summaries: Sequence[dict[str, Any]], own: Set[str]) -> list[dict[str, Any]]:
    """The evaluations that say most: of the run's own data, and of other files; of the latest weights, if both do."""
    groups = ([one for one in summaries if (_table_of(one) in own) is mine] for mine in (True, False))
    # Of those that are equal in rank the latest.
    best = [max(reversed(group), key=_rank) for group in groups if group]
    top = max((_rank(one)[:2] for one in best), default=None)
    found = [one for one in best if _rank(one)[:2] == top]
    return found if top and top[0] else found[:1]


def _table_of(summary: dict[str, Any]) -> str:
    """The file that was evaluated, ``HELD_OUT``, or nothing where neither is known."""
    data = as_object(summary.get("settings")).get("data")
    return data if isinstance(data, str) else ""


def _tables_of(recipe: dict[str, Any]) -> set[str]:
    """Paths of the tables that a recipe names."""
    given = [as_object(recipe.get("data")).get(key) for key in ("train", "eval")]
    sections = [section for one in given for section in (one if isinstance(one, list) else [one])]
    return {os.path.abspath(path) for one in sections if isinstance(path := as_object(one).get("path"), str)}


def short_path(path: str, others: Iterable[str]) -> str:
    """A file's or folder's name, with as many of the folders above it as tell it from others."""
    parts = Path(path).parts
    rest = [Path(other).parts for other in others if other != path]
    count = next((n for n in range(1, len(parts)) if all(one[-n:] != parts[-n:] for one in rest)), len(parts))
    return Path(*parts[-count:]).as_posix()


def _rank(summary: dict[str, Any]) -> tuple[bool, int, bool, int]:
    """What an evaluation says of a run: most where it didn't train on the data, of late weights, of its own split."""
    settings, new = as_object(summary.get("settings")), _share(summary, NOT_TRAINED_ON)
    step = settings.get("step")
    own = settings.get("data") == HELD_OUT and settings.get("limit") is None and _share(summary, TRAINED_ON) is None
    return new is not None, step if isinstance(step, int) else 0, own, new.n if new else 0


def _share(summary: dict[str, Any], name: str) -> Share | None:
    right, n = (as_object(summary.get(name)).get(key) for key in ("right", "n"))
    return Share(right, n) if isinstance(right, int) and isinstance(n, int) and 0 <= right <= n and n else None


def _told(summary: dict[str, Any], named: str) -> str:
    """A score with its 95 % interval, and what it is of; nothing where the data had no answers, or it is old."""
    for key, kind in _KINDS.items():
        one: Estimate | None = _share(summary, key)
        with suppress(*CHANGED):
            one = one or estimate_of(summary.get(key))
        if one is not None:
            return f"{_with_interval(one)} of {one.n} {kind}{named}"
    return ""


def _with_interval(one: Estimate) -> str:
    return "{:.1%} [{:.0%}, {:.0%}]".format(one.share, *one.interval)


def _match(summary: dict[str, Any], named: str) -> list[str]:
    """The share of exact matches in words; nothing where the data had no answers."""
    if told := _told(summary, named):
        return [told]
    match, count = (as_object(summary.get(name)).get(ALL) for name in ("exact_match", "counts"))
    if not is_finite(match) or not 0 <= match <= 1:
        return []
    if type(count) is not int or count < 1:
        return [f"{match:.1%} {UNKNOWN}{named}"]
    return [f"{_with_interval(Share(round(match * count), count))} of {count} {UNKNOWN}{named}"]


HEAD = ("run", "state", "changed", "size", "started from", "scores")
# A terminal's column of scores isn't narrower than this, unless each of them fits.
_SCORE_WIDTH = 40


def _lines(rows: Sequence[RunRow], width: int | None) -> list[str]:
    """A table, the scores at its end so that long ones pad nothing; on a terminal with too little room, blocks.

    Args:
        width: of the terminal; None: there is none, and each run has one line, whatever its length.
    """
    cells = [
        HEAD[:-1],
        *((str(row.path), row.state_in_full, row.changed, row.size, row.started_from or "-") for row in rows),
    ]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    starts = [
        "".join(cell + " " * (size - cell_len(cell) + 2) for cell, size in zip(line, widths, strict=True))
        for line in cells
    ]
    scores = [HEAD[-1:], *(row.scores or ("-",) for row in rows)]
    if width is None:
        return [start + "; ".join(each) for start, each in zip(starts, scores, strict=True)]
    indent = sum(widths) + 2 * len(widths)
    if width - indent < min(_SCORE_WIDTH, max(cell_len(one) for each in scores for one in each)):
        return [line for row in rows for line in _block(row, width)]
    beside = [[line for one in each for line in _wrapped(one, width - indent)] for each in scores]
    return [line for start, each in zip(starts, beside, strict=True) for line in _hanging(start, each)]


def _hanging(start: str, lines: Sequence[str]) -> list[str]:
    return [start + lines[0], *(" " * cell_len(start) + line for line in lines[1:])]


def _block(row: RunRow, width: int) -> list[str]:
    facts = [row.state_in_full, f"{row.size}, {row.changed}", *row.scores]
    facts += [f"from {row.started_from}"] * bool(row.started_from)
    lines = [line for fact in facts for line in _wrapped(fact, width - 2)]
    return [*_wrapped(str(row.path), width), *(f"  {line}" for line in lines)]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a terminal; what is below the first one stands in by two."""
    return textwrap.wrap(text, max(width, 10), subsequent_indent="  ", break_on_hyphens=False)
