"""Which questions are asked again, with another picture in its place and without any, and which picture that is."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from basic_lite.data.chat import ChatFormat
from basic_lite.data.digests import picture_digest
from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Record
from basic_lite.scoring.looking import SEED
from basic_lite.scoring.metrics.circular import as_one
from basic_lite.scoring.questions import Question

# Questions that are asked again, of larger sets a sample: some 4 points to both sides, for twice as many answers.
MOST_ASKED_AGAIN = 500


@dataclass(frozen=True)
class Again:
    """What is asked again.

    Attributes:
        others: place of a question → the other picture that it is asked with.
        alone: places of those that are asked without a picture.
        of: how many questions there are in all.
    """

    others: Mapping[int, tuple[ImageRef, ...]]
    alone: Sequence[int]
    of: int

    @property
    def answers(self) -> int:
        """How many answers it takes."""
        return len(self.others) + len(self.alone)

    @property
    def note(self) -> str:
        """What to say of it beforehand; empty: nothing is asked again."""
        count = len(self.others.keys() | set(self.alone))
        ways = [
            way if places == count else f"{way} ({places:,} of them)"
            for way, places in (("with another", len(self.others)), ("without one", len(self.alone)))
            if places
        ]
        if not ways:
            return ""
        are = "are" if count > 1 else "is"
        which = "each question is" if count == self.of else f"{count:,} of the {self.of:,} questions {are}"
        times = "three times: with its picture, " if len(ways) > 1 else "twice: with its picture and "
        return f"{which} asked {times}{' and '.join(ways)} (--no-controls: once)"


def asked_again(questions: Sequence[Question], most: int, chat: ChatFormat) -> Again:
    """At most so many questions, with another picture and without one; in `plain` the picture is all that is asked."""
    sample = control_sample(questions, most)
    others = others_of([one.record for one in questions], sample)
    return Again(others, sample if chat.template != "plain" else (), len(questions))


def control_sample(questions: Sequence[Question], most: int) -> list[int]:
    """Places of the questions with pictures and answers, or of a fixed sample of them.

    Rotations of one question stay together.
    """
    places = [at for at, one in enumerate(questions) if one.record.images and one.is_scored]
    chosen = [[places[n] for n in unit] for unit in as_one([questions[at].circle for at in places])]
    if sum(map(len, chosen)) > most:
        chosen = random.Random(SEED).sample(chosen, len(chosen))
        while len(chosen) > 1 and sum(map(len, chosen)) > most:
            chosen.pop()
    return sorted(at for unit in chosen for at in unit) if most else []


def other_images(records: Sequence[Record], seed: int) -> Callable[[int], tuple[ImageRef, ...]]:
    """For each record the images of another record with as many; pictures that differ in what is in their files.

    Where there is no other picture, a record keeps its own.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[len(record.images)].append(index)
    content = [tuple(map(_content, record.images)) for record in records]
    partner = list(range(len(records)))
    generator = random.Random(seed)
    for members in groups.values():
        shuffled = members[:]
        generator.shuffle(shuffled)
        # Several questions may share a picture: walk on until the picture is another one.
        for place, index in enumerate(shuffled):
            for step in range(1, len(shuffled)):
                candidate = shuffled[(place + step) % len(shuffled)]
                if content[candidate] != content[index]:
                    partner[index] = candidate
                    break
    return lambda index: records[partner[index]].images


def others_of(records: Sequence[Record], sample: Sequence[int]) -> dict[int, tuple[ImageRef, ...]]:
    """For each record of a sample the pictures of another one of it, by its place; none where all are the same."""
    chosen = [records[at] for at in sample]
    other = other_images(chosen, SEED)
    found = {at: other(place) for place, at in enumerate(sample)}
    return {at: images for at, images in found.items() if images is not records[at].images}


def _content(image: ImageRef) -> object:
    try:
        return picture_digest(image)
    except (BadImage, OSError):  # whoever opens it says so
        return image
