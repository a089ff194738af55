"""What is wrong with data, or worth knowing, and which key or command mends it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from basic_lite.data.check import DataReport, key_of
from basic_lite.data.problems import BadImage, NoSupervisedToken, RecordProblem, TooLong
from basic_lite.data.split_column import SPLIT_MEND, counted
from basic_lite.data.unknown_words import UnknownWords
from basic_lite.recipe.schema import DataSection
from basic_lite.sizes import number_of
from basic_lite.tools.check.languages import UNSURE, languages_of
from basic_lite.tools.check.survey import FLAT, Pictures
from basic_lite.tools.check.texts import COMMON, Texts

# Examples of a finding on the page.
MOST_EXAMPLES = 12
# From this share on that the commonest answer to a question is right, the picture is hardly needed.
_MUCH = 0.5
# Languages that are named, beside the others together.
_MOST_LANGUAGES = 5
# Pictures that lose so much of their length, and the share of them from which it is a finding.
_SHRUNK, _MANY = 4.0, 0.2
# Share of a padded picture that is padding.
_PADDING = 0.4


@dataclass(frozen=True)
class Example:
    """What stands for a finding on the page.

    Attributes:
        record: its index, and 1 for the file for evaluation.
        pictures: numbers of pictures that are shown.
        place: of a record that can't be read, with its id.
    """

    text: str = ""
    record: tuple[int, int] | None = None
    pictures: tuple[int, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: ``bad``: mend it; ``look``: it may be meant so; ``fact``: only to know.
        name: short.
        count: what was counted, or a share, in words.
        text: what it is.
        mend: what to do.
        order: a word for how the examples stand: ``First`` in the files, the ``Largest`` groups, the ``Worst``.
    """

    kind: Literal["bad", "look", "fact"]
    name: str
    count: str
    text: str
    mend: str = ""
    examples: Sequence[Example] = field(default_factory=list)
    order: str = "First"


def of_records(
    report: DataReport, section: DataSection, broken: Mapping[int, BadImage], source: int = 0
) -> Iterator[Finding]:
    """What can't be used, and what is cut.

    Args:
        broken: the records whose picture is there and can't be read (``broken_of``).
        source: 1: the records are of the file for evaluation.
    """
    of, can_not = ("held-out ", "can't be scored") if source else ("", "can't be trained on")
    groups: dict[str, list[RecordProblem]] = {}
    for one in report.problems:
        groups.setdefault(one.kind, []).append(one)
    missing = dict(zip(report.broken, groups.pop(BadImage.kind, []), strict=True))
    unreadable = {index: _broken(one) for index, one in missing.items()}
    unreadable |= {index: Example(f"{one.what}; {one.mend}", (index, source)) for index, one in broken.items()}
    if unreadable:
        yield Finding(
            "bad", f"{of}records: {BadImage.kind}", _of(len(unreadable), report.total),
            f"a picture of these is missing, broken or no picture, so they {can_not}",
            "fetch it again, or leave them out with data.bad_records=drop",
            [unreadable[index] for index in sorted(unreadable)[:MOST_EXAMPLES]],
        )  # fmt: skip
    for kind, problems in groups.items():
        mend = "give each record an answer" if kind == NoSupervisedToken.kind else "mend them"
        if kind == TooLong.kind:
            mend = f"raise data.max_length (now {section.max_length:,}; more memory)"
        yield Finding(
            "bad", f"{of}records: {kind}", _of(len(problems), report.total), f"these {can_not}",
            f"{mend}, or leave them out with {key_of(problems[0])}=drop",
            [_broken(one) for one in problems[:MOST_EXAMPLES]],
        )  # fmt: skip
    cut = np.flatnonzero(report.cut)
    if len(cut):
        yield Finding(
            "look", f"{of}answers cut", _of(len(cut), len(report.kept)),
            f"text beyond data.max_length={section.max_length} is cut off their ends, {int(report.cut.sum()):,} tokens",
            "raise data.max_length, which takes more memory, or shorten them",
            [Example(f"{report.cut[at]:,} tokens are cut", (int(report.kept[at]), source))
             for at in cut[:MOST_EXAMPLES]],
        )  # fmt: skip


def _broken(problem: RecordProblem) -> Example:
    text = f"{problem.what}; {problem.mend}" if problem.mend else problem.what
    return Example(text, place=problem.place)


def lengths(report: DataReport, tokens_per_image: int) -> Finding:
    """How long records are, in tokens."""
    middle, long, longest = np.quantile(report.lengths, [0.5, 0.95, 1.0]).astype(int).tolist()
    return Finding(
        "fact", "length", f"{middle:,} tokens",
        f"half of the records have at most so many, 95 % at most {long:,}, the longest {longest:,}; a picture is "
        f"{tokens_per_image:,} of them",
    )  # fmt: skip


def of_parts(parts: Counter[str]) -> Iterator[Finding]:
    """A column `split` that nothing chooses by."""
    if parts:
        yield Finding(
            "look", "column 'split'", f"{len(parts):,} values",
            f"a run trains on all of its parts alike, whatever this column says: {counted(parts)}", SPLIT_MEND,
        )  # fmt: skip


def of_unknown_words(found: Iterable[UnknownWords]) -> Iterator[Finding]:
    """Words that the model has no token for."""
    for one in found:
        yield Finding("bad", f"unknown words in {one.whose}", f"{one.share:.0%}", one.what, one.mend)


def of_texts(texts: Texts, total: int) -> Iterator[Finding]:
    """Blank and endless answers, special tokens, scripts, and answers that need no picture."""
    for kind, name, text, mend in (
        (texts.blank, "blank answers", "an answer of these has no text", "write it, or take the turn out"),
        (texts.repeating, "endless answers", "a long answer says the same again and again, and so will the model",
         "take them out, or cut them where they begin to repeat"),
        (texts.with_token, "special tokens in text",
         f"marks of a model or of a chat format are written in questions or answers: {_tokens(texts)}. They are read "
         "as plain letters, and the model learns to write them",
         "take them out of the texts; marks come from data.template, and <image> belongs in questions alone"),
    ):  # fmt: skip
        if kind.count:
            examples = [Example("", (place, 0)) for place in kind.places[:MOST_EXAMPLES]]
            yield Finding("bad", name, _of(kind.count, total), text, mend, examples)
    prior = texts.prior()
    if prior.pairs:
        share = prior.right / prior.pairs
        worst = [
            Example(f"asked {times:,} times; one answer is right {part:.0%} of the time", (place, 0))
            for place, times, part in prior.worst[:MOST_EXAMPLES]
        ]
        yield Finding(
            "look" if share >= _MUCH else "fact", "answers by rote", f"{share:.0%}",
            "so many answers can be guessed from the question alone, because they are its commonest answer; counted: "
            f"the {prior.pairs:,} whose question is asked {COMMON} times or more",
            "a score on these says little; add pictures with other answers to them" * (share >= _MUCH),
            worst, "Worst",
        )  # fmt: skip
    scripts = ", ".join(f"{name} {_of(count, total)}" for name, count in texts.scripts.most_common(5))
    yield Finding(
        "fact", "scripts", number_of(len(texts.scripts), "script"),
        f"the answers' letters: {scripts}; a model must know them all",
        examples=[Example(name, (place, 0)) for name, place in list(texts.examples.items())[:MOST_EXAMPLES]],
    )  # fmt: skip
    yield _languages(texts)


def _languages(texts: Texts) -> Finding:
    """The languages of a sample of answers, and of questions."""
    parts, known = [], set()
    for name, sample in (("answers", texts.said), ("questions", texts.asked)):
        found = languages_of(sample.texts)
        if isinstance(found, str):
            return Finding("fact", "languages", "not known", "not looked at", found)
        known |= found.keys() - {UNSURE}
        unsure = found.pop(UNSURE, 0)
        shown = found.most_common(_MOST_LANGUAGES)
        rest = found.total() - sum(count for _, count in shown)
        named = [*shown, *[("others", rest)] * bool(rest), *[(UNSURE, unsure)] * bool(unsure)]
        shares = ", ".join(f"{language} {count / len(sample.texts):.1%}" for language, count in named)
        of = f" (of {len(sample.texts):,} of {sample.met:,})" if sample.met > len(sample.texts) else ""
        parts.append(f"{name}{of}: {shares or 'no letters'}")
    short = "; a text of one to three words is too short to know its language"
    text = "; ".join(parts) + (short if UNSURE in "".join(parts) else "")
    return Finding("fact", "languages", number_of(len(known), "language"), text)


def _tokens(texts: Texts) -> str:
    return ", ".join(f"{token} ({count:,})" for token, count in texts.tokens.most_common(5))


def of_pictures(
    pictures: Pictures, same: NDArray[np.int64], near: NDArray[np.int64], sides: tuple[set[int], set[int]]
) -> Iterator[Finding]:
    """Pictures that are there twice, and those that are on both sides of the split.

    Args:
        same, near: ``Pictures.groups``.
        sides: numbers of the pictures that are trained on, and of those that are held out.
    """
    count, readable = len(pictures.places), pictures.readable
    firsts = np.flatnonzero(same == np.arange(len(same)))  # one of each file
    copies, looks = _copies(same, readable), _copies(near[firsts], readable[firsts])
    for name, groups, text in (
        ("pictures twice", copies, "files under several names hold the same picture"),
        ("pictures that look alike", looks, "they differ little: resized, saved anew, or frames of one scene"),
    ):
        if groups:
            extra = sum(len(group) - 1 for group in groups)
            yield Finding(
                "look", name, _of(extra, count), f"{text}; {number_of(len(groups), 'such group')}",
                "a picture that is there twice is trained on twice as often as others; keep one of each where that "
                "isn't meant",
                [Example("", None, tuple(group[:4])) for group in groups[:MOST_EXAMPLES]], "Largest",
            )  # fmt: skip
    flat = pictures.flat.tolist()
    if flat:
        yield Finding(
            "look", "pictures of one colour", _of(len(flat), count),
            f"their darkest and brightest places differ by less than {FLAT} of 255 levels, as the model sees them: "
            "transparency is left out, and 16-bit grey is taken by its upper 8 bits",
            "look at them; put a black drawing on a transparent ground on white, and make a dark 16-bit picture "
            "brighter; else leave them out",
            [Example("", None, (number,)) for number in flat[:MOST_EXAMPLES]],
        )  # fmt: skip
    yield from _leaks(same, near, readable, sides)


def _leaks(
    same: NDArray[np.int64], near: NDArray[np.int64], readable: NDArray[np.int64], sides: tuple[set[int], set[int]]
) -> Iterator[Finding]:
    """Held-out pictures that are also trained on, and those that look like one that is."""
    trained, held = sides
    copies = {number: number for number in sorted(trained & held)} | _twins(same, readable, sides)
    looks = {number: twin for number, twin in _twins(near, readable, sides).items() if number not in copies}
    if copies:
        yield Finding(
            "bad", "held out, but trained on", _of(len(copies), len(held)),
            "files equal to these held-out pictures are trained on, so the held-out score is too good",
            "take the copies out, or name other data for evaluation (data.eval.path)", _pairs(copies),
        )  # fmt: skip
    if looks:
        yield Finding(
            "look", "held out, but alike", _of(len(looks), len(held)),
            "these held-out pictures look like ones that are trained on, so the held-out score may be too good",
            "look at them; where they are copies, take them out, or name other data for evaluation (data.eval.path)",
            _pairs(looks),
        )  # fmt: skip


def _twins(labels: NDArray[np.int64], readable: NDArray[np.int64], sides: tuple[set[int], set[int]]) -> dict[int, int]:
    """The first trained picture with the same label, of each that is held out alone."""
    trained, held = sides
    alone = held - trained
    known = list(zip(readable.tolist(), labels.tolist(), strict=True))
    first: dict[int, int] = {}
    for number, label in known:
        if number in trained:
            first.setdefault(label, number)
    return {number: first[label] for number, label in known if number in alone and label in first}


def _pairs(twins: dict[int, int]) -> list[Example]:
    return [Example("", None, tuple(dict.fromkeys(pair))) for pair in sorted(twins.items())[:MOST_EXAMPLES]]


def of_sizes(pictures: Pictures, side: int, tokens: int, section: DataSection) -> Iterator[Finding]:
    """What the encoder's square leaves of the pictures.

    Args:
        side: of that square, in pixels.
        tokens: of an image.
    """
    sizes = pictures.sizes
    if not len(sizes):
        return
    long, short = sizes.max(axis=1), sizes.min(axis=1)
    shrunk = np.maximum(long / side, 1.0)
    lost = np.flatnonzero(shrunk > _SHRUNK)
    share = len(lost) / len(sizes)
    order = lost[np.argsort(-shrunk[lost])][:MOST_EXAMPLES]
    yield Finding(
        "look" if share >= _MANY else "fact", "pictures made small", f"{share:.0%}",
        f"share of the pictures that are more than {_SHRUNK:.0f} times as long as the encoder's square of {side} × "
        f"{side} pixels ({tokens:,} tokens): small writing in them is lost. Half of all pictures are made "
        f"{np.median(shrunk):.1f} times smaller or less",
        "cut out what matters, or take an encoder with more pixels" * (share >= _MANY),
        [Example(f"{sizes[at][0]} × {sizes[at][1]} pixels", None, (int(pictures.readable[at]),)) for at in order],
        "Worst",
    )  # fmt: skip
    oblong = 1 - float((short / long).mean())
    if oblong >= _PADDING:
        what = "of the encoder's square is padding" if section.image_fit == "pad" else "of their shape is pressed away"
        yield Finding(
            "look", "oblong pictures", f"{oblong:.0%}",
            f"on average so much {what} by data.image_fit={section.image_fit}",
            "cut them into parts that are nearly square",
        )  # fmt: skip


def _copies(labels: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[list[int]]:
    """Groups of two pictures or more, the largest first."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) != 0]) if len(labels) else np.array([], dtype=int)
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    return [numbers[group].tolist() for group in sorted(groups, key=len, reverse=True)]


def _of(count: int, total: int) -> str:
    share = f"{count / total:.1%}" if total else ""
    return f"{count:,} ({share})" if share else f"{count:,}"
