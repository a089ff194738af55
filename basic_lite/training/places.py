"""What lies where in a run folder. Nothing heavy is imported here, so that a list of runs needs no torch.

::

    recipe.yaml  parts.json  data.json     written when the run takes the folder, and
    software.json                          what it is made with (see ``software.py``)
    trained_on.safetensors                 what it is trained on (see ``trained_on.py``)
    log.jsonl  tensorboard/  report.html   written as it goes
    samples.json  maps.json                small copies of the pictures in the report, token maps of some
    checkpoint-N/  final/                  bundles
    best/                                  the bundle of the best step, if one is kept (training.metric_for_best_model)
    set-aside-…/                           bundles that --resume --checkpoint has passed by
    predictions_….jsonl, .summary.json     written by `eval`
    text_probe_….json                      written by `text-probe`, of a bundle
    kept-1/ kept-2/ …                      what --overwrite has found in a run that isn't the run's own
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basic_lite.outside import as_object, is_finite, open_file, parse_json, read_json_file
from basic_lite.whole_file import PART

# Where runs are, if a recipe's `output` names no other folder.
RUNS = Path("runs")
LOCK, SCRATCH = ".lock", ".writable"
RECIPE_YAML, PARTS, DATA, TRAINED_ON = "recipe.yaml", "parts.json", "data.json", "trained_on.safetensors"
# What a start leaves before it has taken its folder.
BEFORE_A_RUN = frozenset((LOCK, SCRATCH, PARTS + PART))
LOG, TENSORBOARD = "log.jsonl", "tensorboard"
SOFTWARE = "software.json"
# The page for people, small copies of the held-out pictures that it shows, and token maps of some.
REPORT, SAMPLES, MAPS = "report.html", "samples.json", "maps.json"
FINAL, BEST, MANIFEST, RECIPE_JSON = "final", "best", "manifest.json", "recipe.json"
# The trained projector; what versions before 0.2 had in a checkpoint.
PROJECTOR, TRAINER_STATE = "projector.safetensors", "trainer_state.json"
SET_ASIDE, KEPT = "set-aside-", "kept-"
PREDICTIONS, SUMMARIES = "predictions_*.jsonl", "predictions_*.summary.json"
TEXT_PROBE = "text_probe_{}.json"
# What `eval --held-out` calls its data, there and in the names of these files.
HELD_OUT = "held-out"
OLD = ".old"
# How the names of folders that aren't whole yet begin, beside the place they will have, and what is locked in them.
UNFINISHED, HELD = ".basic-lite-", ".held"


def checkpoints_of(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first. A folder gets such a name only when it is whole.

    One that has none of a bundle's files, or another step's, is a person's own.
    """
    found = [(path, re.fullmatch(r"checkpoint-(0|[1-9][0-9]*)", path.name)) for path in run.glob("checkpoint-*")]
    numbered = [(int(match[1]), path) for path, match in found if match and _is_checkpoint(path, int(match[1]))]
    return [path for _, path in sorted(numbered)]


def _is_checkpoint(folder: Path, step: int) -> bool:
    if not any((folder / name).exists() for name in (MANIFEST, RECIPE_JSON, PROJECTOR, TRAINER_STATE)):
        return False
    saved = as_object(read_json(folder / MANIFEST)).get("step")
    return not isinstance(saved, int) or saved == step


def holds_bundle(folder: Path) -> bool:
    """Whether a run's trained model is there, or a checkpoint of it, or its best step."""
    return is_finished(folder) or bool(checkpoints_of(folder)) or has_best(folder)


def newest_first(run: Path) -> list[Path]:
    """A run's bundles, those that say most of it first: the final one, then checkpoints, then its best step."""
    return [*[run / FINAL] * is_finished(run), *checkpoints_of(run)[::-1], *[run / BEST] * has_best(run)]


def is_finished(folder: Path) -> bool:
    """Whether a run's final bundle is there."""
    return os.path.isfile(folder / FINAL / MANIFEST)


def has_best(folder: Path) -> bool:
    """Whether the bundle of a run's best step is there. A folder of that name may be a person's own."""
    return best_record(folder / BEST) is not None


def best_record(bundle: Path) -> dict[str, Any] | None:
    """What a best step's manifest says of it: ``step``, ``by`` and ``value``; None: it isn't one."""
    manifest = as_object(read_json(bundle / MANIFEST))
    record = manifest.get("best")
    if not isinstance(record, dict) or "by" not in record or not is_finite(record.get("value")):
        return None
    return {"step": manifest.get("step"), **record}


def best_between_names(folder: Path) -> Path | None:
    """The best bundle, where a kill came while a better one took its name; None: it has its name, or there is none."""
    old = folder / (BEST + OLD)
    return old if not (folder / BEST).exists() and best_record(old) is not None else None


def is_run(folder: Path) -> bool:
    """Whether a run has taken this folder. A recipe alone makes none: it may be a person's own."""
    bundles = [folder / FINAL, folder / BEST, *checkpoints_of(folder)]
    return _is_part_table(folder / PARTS) or any(_is_ours(bundle / MANIFEST) for bundle in bundles)


def _is_part_table(path: Path) -> bool:
    table = read_json(path)
    return isinstance(table, list) and bool(table) and all(isinstance(row, dict) and "part" in row for row in table)


def _is_ours(manifest: Path) -> bool:
    """Whether a bundle is this program's: others call their checkpoints the same."""
    return {"format", "files", "step"} <= as_object(read_json(manifest)).keys()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it can't be read."""
    try:
        return read_json_file(path)
    except (OSError, ValueError):
        return None


def json_lines(path: Path, *, after: int = 0) -> Iterator[Any]:
    """What each line of a file holds; None: it is no JSON. An empty line, and a last one that was cut off, is no line.

    Args:
        after: bytes of the file that are passed over.
    """
    with open_file(path) as stream:
        stream.seek(after)
        for line in stream:
            if not line.strip():
                continue
            try:
                yield parse_json(line.decode("utf-8", "replace"))
            except ValueError:
                if line.endswith(b"\n"):
                    yield None


def later(path: Path, settings: Any) -> tuple[int, list[tuple[int, str]], str]:
    """By what files of an evaluation are put in order: the step of the weights, then the name, with 10 after 2.

    Copying a folder changes neither. ``eval`` gives a further file of the same data the next number.

    Args:
        settings: that the summary has; of a file that somebody changed, anything.
    """
    step = as_object(settings).get("step")
    parts = [(int(part), "") if part.isdecimal() else (0, part) for part in re.findall("[0-9]+|[^0-9]+", path.name)]
    return step if type(step) is int else 0, parts, path.name


def remains_of(folder: Path) -> list[Path]:
    """What a start has left that saved nothing, and what a kill has cut off; no bundle."""
    written = ("checkpoint-*", FINAL, BEST, LOG, PARTS, DATA)
    cut_off = [path for name in written for end in (PART, OLD) for path in sorted(folder.glob(name + end))]
    if (best := best_between_names(folder)) is not None:
        cut_off.remove(best)
    written_once = (LOG, TENSORBOARD, REPORT, SAMPLES, MAPS, DATA, TRAINED_ON, SOFTWARE, RECIPE_YAML, PARTS)
    named = [folder / name for name in written_once]
    return [path for path in [*cut_off, *named] if os.path.lexists(path)]


def bundles_of(folder: Path) -> list[Path]:
    """All that the run in a folder has saved."""
    named = [folder / FINAL] * is_finished(folder) + [folder / BEST] * has_best(folder)
    return [*checkpoints_of(folder), *named, *set_aside_in(folder)]


def set_aside_in(folder: Path) -> list[Path]:
    """Bundles of steps that were made again."""
    names = (f"{SET_ASIDE}checkpoint-*", f"{SET_ASIDE}{FINAL}", f"{SET_ASIDE}{BEST}")
    return [path for name in names for path in sorted(folder.glob(name)) if path.is_dir()]
