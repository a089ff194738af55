"""What a clip-art file shows, from its name, its title and its folder; and questions that have one right answer."""

from __future__ import annotations

import html
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

CAPTION_REQUEST = "What is this?"
# Pictures that a word must name to be in a caption.
SHARED = 5
QUESTION_TYPES = ("kind", "colour", "choice", "shown")
# The first pattern that a folder's path has gives the kind of its pictures.
KINDS = {
    "birds?": "bird",
    "fish|aquatic|shellfish": "sea animal",
    "bugs|insects": "insect",
    "dinosaurs?": "dinosaur",
    "mammals": "mammal",
    "animals": "animal",
    "flags": "flag",
    "cards": "playing card",
    "arrows": "arrow",
    "stars": "star",
    "jigsaw": "jigsaw",
    "fruit": "fruit",
    "vegetables": "vegetable",
    "desserts?": "dessert",
    "beverages": "drink",
    "food": "food",
    "hats|clothing|clothes": "clothing",
    "smilies|faces": "face",
    "people": "person",
    "flowers": "flower",
    "trees": "tree",
    "plants": "plant",
    "roadsigns|aiga-symbols": "sign",
    "vehicles|transportation|boating": "vehicle",
    "buildings|town": "building",
    "music": "music",
    "icons|buttons": "icon",
    "computer|electronics": "device",
    "weapons|military": "weapon",
    "tools|household|office": "tool",
    "alphabets": "letter",
    "coins|money": "coin",
    "geography": "map",
    "space|astronomy": "space",
    "gradients|patterns": "pattern",
    "sports": "sport",
    "shapes|decorations": "shape",
    "symbols|signs_and_symbols|logos": "symbol",
    "recreation|hobbies|seasonal": "celebration",
}
_NOISE = re.compile(r"\b(architetto|francesco|rollandin|franc\w*|archite\w*|remix|clip art|part|\w*\d\w*|\w)\b", re.I)


@dataclass(frozen=True)
class Shown:
    """One picture: its file name, what kind of thing it shows, its name, and the colour that stands out."""

    image: str
    kind: str
    name: str
    colour: str

    def caption(self, known: Set[str]) -> str:
        """Colour and kind, and those words of the name that are ``known``: "a brown mammal: bear"."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        more = [word for word in self.name.split() if word in known and word not in self.kind.split()]
        return " ".join([f"{article} {self.colour} {self.kind}{':' * bool(more)}", *more])


def shared_words(shown: Sequence[Shown]) -> frozenset[str]:
    """The words that the names of at least `SHARED` pictures have: of others, nothing can be learnt."""
    counts = Counter(word for picture in shown for word in set(picture.name.split()))
    return frozenset(word for word, count in counts.items() if count >= SHARED)


def kind_of(folder: str) -> str | None:
    """The kind of the pictures below a folder; None where nothing in its path says so."""
    return next((kind for pattern, kind in KINDS.items() if re.search(rf"(^|/)({pattern})(/|$)", folder)), None)


def name_of(stem: str, svg: str) -> str:
    """A name of one to six words; empty where there is none.

    File names are cut and end with a part of their author's. So a title that the file name begins with is better.
    """
    found = re.search(r"<dc:title>(.*?)</dc:title>", svg, re.DOTALL)
    title = _words(html.unescape(found.group(1)) if found else "")
    words = _words(stem)
    chosen = title if title and words.startswith(title) else words
    return chosen if 2 < len(chosen) <= 40 and len(chosen.split()) <= 6 else ""


def _words(text: str) -> str:
    return " ".join(_NOISE.sub(" ", re.sub(r"[^A-Za-z0-9]+", " ", text)).lower().split())


def caption_record(number: int, shown: Shown, known: Set[str]) -> dict[str, Any]:
    return _record(f"caption-{number}", shown, CAPTION_REQUEST, shown.caption(known), "caption")


def question_record(
    number: int, shown: Shown, kind: str, others: Sequence[Shown], rng: random.Random
) -> dict[str, Any]:
    """A question of type ``kind`` about one picture. ``others``: pictures to take a wrong name from."""
    other = rng.choice(others)
    while other.kind == shown.kind or other.name == shown.name:
        other = rng.choice(others)
    first, second = rng.sample((shown.name, other.name), 2)
    asked = shown if rng.random() < 0.5 else other
    texts: Mapping[str, tuple[str, str]] = {
        "kind": ("What kind of thing is shown?", shown.kind),
        "colour": ("Which colour stands out most?", shown.colour),
        "choice": (f"Which one is it: {first}, or {second}?", shown.name),
        "shown": (f"Is this {asked.name}?", "yes" if asked is shown else "no"),
    }
    return _record(f"{kind}-{number}", shown, *texts[kind], kind)


def _record(identity: str, shown: Shown, question: str, reply: str, kind: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": reply}]
    return {"id": identity, "image": shown.image, "conversations": turns, "question_type": kind}
