"""Runs, or groups of runs, compared on the questions that all of them answered."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basic_lite.errors import UserError
from basic_lite.intervals import difference, mean_interval
from basic_lite.resampling import LEAST_SAMPLES, Interval
from basic_lite.sizes import number_of
from basic_lite.tools.compare.answers import Answers, pictures_known, scores_of, trained_on
from basic_lite.tools.compare.losses import Losses, losses_of
from basic_lite.tools.compare.mcnemar import McNemar, mcnemar
from basic_lite.tools.compare.same_questions import in_common
from basic_lite.tools.runs import short_path

# With fewer runs a side, drawing among them shows too little of how runs with other seeds differ.
FEW_RUNS = 5
# McNemar's test finds a difference where its p is below this, as a 95 % interval does where it leaves 0 out.
CHANCE = 0.05


@dataclass(frozen=True)
class Side:
    """A run, or a group of runs that differ in their seed.

    Attributes:
        places: run folders or files of predictions.
    """

    name: str
    places: tuple[Path, ...]


@dataclass(frozen=True)
class Against:
    """A side against the first one.

    Attributes:
        gain: its score minus the first's.
        test: None where a side has several runs, or scores aren't right or wrong.
    """

    gain: Interval
    test: McNemar | None
    questions: int

    @property
    def agree(self) -> bool:
        """Whether interval and test, where there is one, both find a difference, or both none."""
        return self.test is None or (self.test.p < CHANCE) == (self.gain.low > 0 or self.gain.high < 0)

    @property
    def verdict(self) -> str:
        """In words: better or worse only where interval and test both find a difference."""
        what = self.gain.verdict(self.questions) if self.agree else "can't tell"
        return {"holds": "better", "fails": "worse", "can't tell": "no clear difference"}[what]


@dataclass(frozen=True)
class TypeRow:
    """The questions of one type: how many, each side's score, and each later side against the first."""

    name: str
    n: int
    scores: list[float]
    gains: list[Interval]


@dataclass(frozen=True)
class Comparison:
    """All that is shown.

    Attributes:
        scores: of each side.
        against: of each side after the first.
        rows: of each question, the first run's prediction of each side.
        right: [sides, n], mean scores of questions.
        notes: what to know of the files.
    """

    sides: list[Side]
    n: int
    metric: str
    data: str
    scores: list[Interval]
    against: list[Against]
    types: list[TypeRow]
    losses: list[Losses]
    rows: list[list[Mapping[str, Any]]]
    right: NDArray[np.float64]
    notes: list[str]

    @property
    def questions(self) -> str:
        """How many, in words."""
        return number_of(self.n, "question")


def sides_of(runs: Sequence[Path], groups: Sequence[str]) -> list[Side]:
    """The runs, each with as much of its path as tells it from the others, then the groups (``NAME=RUN,RUN``).

    Raises:
        UserError: there are fewer than two, or a group isn't written so.
    """
    paths = [os.path.abspath(run) for run in runs]
    sides = [Side(short_path(path, paths), (run,)) for path, run in zip(paths, runs, strict=True)]
    for text in groups:
        name, _, listed = text.partition("=")
        found = [Path(place.strip()) for place in listed.split(",") if place.strip()]
        if not name.strip() or not found:
            raise UserError(f"--group: {text!r} isn't NAME=RUN,RUN; write it as in --group on=runs/on_0,runs/on_1")
        sides.append(Side(name.strip(), tuple(found)))
    if len(sides) < 2:
        raise UserError("there is nothing to compare with: name two runs or more, or two groups")
    places = [os.path.realpath(place) for side in sides for place in side.places]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UserError(f"{twice} is named twice, and a run is no better than itself; name it once")
    names = [side.name for side in sides]
    if same := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two sides are called {same!r}; give a group another name")
    return sides


def compared(sides: Sequence[Side]) -> Comparison:
    """Compare them.

    Raises:
        UserError: they answered different questions, or were scored by different rules.
    """
    flat = in_common([place for side in sides for place in side.places])
    groups = _grouped(flat, sides)
    digests, scores = scores_of(flat)  # [files, n]
    seen = trained_on(flat)
    kept = [at for at, digest in enumerate(digests) if digest not in seen]
    notes = [f"passed over: {why}" for one in flat for why in one.passed]
    notes += [note for one in flat for note in one.notes]
    if seen and kept:
        left_out = number_of(len(digests) - len(kept), "question")
        notes.append(f"left out: {left_out} whose pictures a run was trained on")
    elif seen:
        notes.append("the pictures of all questions were trained on, so this says nothing of new ones")
        kept = list(range(len(digests)))
    notes += _asked_otherwise(flat)
    digests, scores = [digests[at] for at in kept], scores[:, kept]
    stacks = _grouped(scores, sides)
    several = sum(len(stack) > 1 for stack in stacks)
    if several and min(map(len, stacks)) < FEW_RUNS:
        notes.append(f"fewer than {FEW_RUNS} runs a side: the intervals may be too narrow for what seeds change")
    losses, damaged = losses_of([side.places for side in sides])
    notes += damaged
    return Comparison(
        sides=list(sides),
        n=len(digests),
        metric=flat[0].metric,
        data=flat[0].data,
        scores=[mean_interval(stack) for stack in stacks],
        against=[_against(stack, stacks[0]) for stack in stacks[1:]],
        types=list(_types([str(flat[0].rows[d].get("question_type") or "") for d in digests], stacks)),
        losses=losses,
        rows=[[group[0].rows[digest] for group in groups] for digest in digests],
        right=np.stack([stack.mean(axis=0) for stack in stacks]),
        notes=list(dict.fromkeys(notes)),
    )


def _asked_otherwise(answers: Sequence[Answers]) -> Iterator[str]:
    """What differs in how the same questions were asked."""
    for key in ("template", "max_new_tokens"):
        values = list(dict.fromkeys(str(one.settings.get(key)) for one in answers))
        if len(values) > 1:
            yield f"they were asked with different {key} ({', '.join(values)}), which changes answers"
    known = all(map(pictures_known, answers))
    if len({one.settings.get("data_sha256") for one in answers}) > 1 and not known:
        yield "the questions are the same word for word; their pictures' files lie elsewhere or are newer"


def _grouped(values: Any, sides: Sequence[Side]) -> list[Any]:
    """A list or an array with an entry for each place, cut into the sides'."""
    ends = np.cumsum([len(side.places) for side in sides])
    return [values[end - len(side.places) : end] for side, end in zip(sides, ends, strict=True)]


def _against(stack: NDArray[np.float64], base: NDArray[np.float64]) -> Against:
    plain = len(stack) == len(base) == 1 and bool(np.isin(np.concatenate([stack, base]), (0, 1)).all())
    test = mcnemar(base[0] > 0.5, stack[0] > 0.5) if plain else None
    return Against(difference(stack, base), test, stack.shape[1])


def _types(names: Sequence[str], stacks: Sequence[NDArray[np.float64]]) -> Iterator[TypeRow]:
    """A row for each type of question; none where there is one type."""
    for name in sorted(set(names)) if len(set(names)) > 1 else []:
        chosen = np.array([one == name for one in names])
        parts = [stack[:, chosen] for stack in stacks]
        gains = [difference(part, parts[0]) for part in parts[1:]]
        yield TypeRow(name or "(none)", int(chosen.sum()), [float(part.mean()) for part in parts], gains)


def remarks(found: Comparison) -> Iterator[str]:
    """What belongs below the tables."""
    yield from found.notes
    if found.n < LEAST_SAMPLES:
        yield f"too few to tell better from worse: {found.questions}"
    elif not all(one.agree for one in found.against):
        yield f"no clear difference where the interval and McNemar's p (below {CHANCE}) don't both find one"
    if len(found.against) > 2:
        yield f"of {len(found.against)} comparisons one may seem clear by chance: each is wrong in 1 of 20 cases"
