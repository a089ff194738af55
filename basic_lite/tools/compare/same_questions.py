"""Whether runs answered the same questions, scored by the same rule; if not, what differs and what to do."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.printable import quoted
from basic_lite.tools.compare.answers import EVAL, Answers, candidates, other_pictures
from basic_lite.training.places import HELD_OUT


def in_common(places: Sequence[Path]) -> list[Answers]:
    """For each place the latest of its files that answers the same questions by the same rule as one of every other.

    Raises:
        UserError: there are no such questions, they were scored by different rules, or their pictures differ.
    """
    found = [candidates(place) for place in places]
    if picked := _picked(found, _comparable):
        return picked
    if same := _picked(found, _may_be_one):
        raise UserError(
            f"{same[0].path} is the only file that answers these questions, and it is no better than itself; {EVAL}"
        )
    passed = dict.fromkeys(why for files in found for why in files[0].passed)
    also = f" (passed over: {'; '.join(passed)})" if passed else ""
    raise UserError(_why_none(found) + also)


def _picked(found: Sequence[Sequence[Answers]], fit: Callable[[Answers, Answers], bool]) -> list[Answers] | None:
    """One file of each place, which all fit one another; None: there are none."""
    for first in found[0]:
        picked = [first]
        for files in found[1:]:
            picked += [one for one in files if all(fit(other, one) for other in picked)][:1]
        if len(picked) == len(found):
            return picked
    return None


def _comparable(one: Answers, other: Answers) -> bool:
    return one.path.resolve() != other.path.resolve() and _may_be_one(one, other)


def _may_be_one(one: Answers, other: Answers) -> bool:
    """Whether they can be compared, if they aren't the same file."""
    return _same_questions(one, other) and one.metric == other.metric and not other_pictures(one, other)


def _same_questions(one: Answers, other: Answers) -> bool:
    return one.rows.keys() == other.rows.keys()


def _why_none(found: Sequence[Sequence[Answers]]) -> str:
    """What differs between files of which none fit one another, and what to do."""
    asked = _picked(found, _same_questions)
    if asked is None:
        others = [files[0] for files in found[1:] if not _same_questions(files[0], found[0][0])]
        return why_other_questions(found[0][0], others[0])
    one, other = next(pair for pair in combinations(asked, 2) if not _comparable(*pair))
    if changed := other_pictures(one, other):
        row = one.rows[changed[0]]
        return (
            f"{one.path} and {other.path} answer the same questions about other pictures: {len(changed):,} of "
            f"{len(one.rows):,} have pictures of the same names with other contents, as number {row.get('number')} "
            f"({quoted(str(row.get('images')), 60)}); evaluate both with the same files"
        )
    return (
        f"{one.path} was scored by {one.metric}, and {other.path} by {other.metric}: these scores "
        "can't be compared; evaluate both by the same rule"
    )


def why_other_questions(one: Answers, other: Answers) -> str:
    """What differs between the questions of two files, and what to do."""
    mine, theirs = _by_place(one), _by_place(other)
    both = [place for place in mine if place in theirs]
    reworded = [(mine[place]["question"], theirs[place]["question"]) for place in both]
    if added := _added([pair for pair in reworded if pair[0] != pair[1]]):
        ends = [
            f"ends each question with {quoted(text.strip(), 80)}" if text.strip() else "adds nothing" for text in added
        ]
        return (
            f"{one.path} and {other.path} answer the same questions with another instruction: the first {ends[0]}, the "
            f"second {ends[1]}; evaluate both with one --instruction"
        )
    limits = [answers.settings.get("limit") for answers in (one, other)]
    if len(both) == min(len(mine), len(theirs)) and limits[0] != limits[1]:
        asked = [f"{limit:,} questions (--limit {limit})" if limit else "all questions" for limit in limits]
        return (
            f"{one.path} answers {asked[0]}, and {other.path} {asked[1]}, of the same data; evaluate both with one "
            "--limit, or both without"
        )
    return _others(one, other)


def _others(one: Answers, other: Answers) -> str:
    only = [row for digest, row in one.rows.items() if digest not in other.rows]
    others = [row for digest, row in other.rows.items() if digest not in one.rows]
    example = (only or others)[0]
    named = f" ({one.data} and {other.data})" if one.data != other.data else ""
    mend = EVAL
    if HELD_OUT in (one.data, other.data):
        mend = f"each run keeps records of its own (by its data, seed and data.held_out); {EVAL}"
    return (
        f"{one.path} and {other.path} answer different questions{named}: {len(only):,} of {len(one.rows):,} are only "
        f"in the first, {len(others):,} of {len(other.rows):,} only in the second, as number {example.get('number')} "
        f"({quoted(example['question'], 60)}); {mend}"
    )


def _by_place(answers: Answers) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by what a question is but for its words. A question in several orders has several."""
    seen: Counter[str] = Counter()
    found = {}
    for row in answers.rows.values():
        # As JSON, since a file from elsewhere may have lists where names belong.
        place = json.dumps([row.get("number"), row.get("id"), row.get("images") or []])
        found[place, seen[place]] = row
        seen[place] += 1
    return found


def _added(pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """What the one and the other side add to the same questions; None: they differ in another way, or not at all."""
    if not pairs:
        return None
    first, second = pairs[0]
    length = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), -1)
    same = first[:length] if length >= 0 else min(first, second, key=len)
    if length >= 0:  # back to where a line or a word begins
        same = same[: same.rfind("\n")] if "\n" in same else same[: same.rfind(" ") + 1]
    added = first[len(same) :], second[len(same) :]
    whole = all(one.endswith(added[0]) and other == one.removesuffix(added[0]) + added[1] for one, other in pairs)
    return added if same and whole else None
