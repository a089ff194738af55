"""What the demo's LLM reads in training: scenes told in words, and conversations about them. Text only."""

from __future__ import annotations

import random
from collections.abc import Callable

from basic_lite.demo import world
from basic_lite.demo.world import Scene, Thing, ask, caption, sample_scene

EMPTY = "empty"

# (text, whether it is to be learnt): answers are, descriptions and questions are context.
Document = list[tuple[str, bool]]


def drawn_map(scene: Scene, rng: random.Random) -> str:
    """Draw the scene as 6×6 = 36 words in raster order, a 2×2 block per grid cell.

    That is the layout of the vision encoder's 36 patches, so what the LLM learns here about places carries
    over when visual tokens take the words' place. A block says its object's colour and shape in a random
    arrangement.
    """
    side = 2 * world.GRID
    words = [EMPTY] * (side * side)
    style = rng.randrange(3)
    for thing in scene.things:
        if style == 0:
            block = [thing.colour, thing.shape, thing.colour, thing.shape]
        elif style == 1:
            block = [thing.colour, thing.colour, thing.shape, thing.shape]
        else:
            block = [thing.colour, thing.shape, rng.choice((thing.colour, thing.shape)), thing.shape]
            rng.shuffle(block)
        row, column = divmod(thing.cell, world.GRID)
        for number, word in enumerate(block):
            words[(2 * row + number // 2) * side + 2 * column + number % 2] = word
    return " ".join(words)


def shuffled_list(scene: Scene, rng: random.Random) -> str:
    """Name the objects with their places, in any order."""
    things: list[Thing] = list(scene.things)
    rng.shuffle(things)
    return caption(Scene(tuple(things)))


DESCRIPTIONS: dict[str, Callable[[Scene, random.Random], str]] = {
    "map": drawn_map,
    "list": shuffled_list,
}


def conversation(description: str, turns: list[tuple[str, str]]) -> Document:
    """Write (question, answer) turns as the tokenizer's chat template does, the first after the description.

    Where a picture's `<image>` stands for the vision-language model, the description stands here.
    """
    document: Document = []
    for number, (question, answer) in enumerate(turns):
        opening = "\nuser: " if number else f"<s>user: {description}\n"
        document += [(f"{opening}{question}\nassistant: ", False), (f"{answer}</s>", True)]
    return document


def captioned(scene: Scene, description: str) -> Document:
    """A description and the caption right after it, as LLaVA's `plain` format shows pictures."""
    return [(f"<s>{description} ", False), (f"{caption(scene)}\n", True)]


def retelling(scene: Scene, description: str, rng: random.Random) -> Document:
    """A description, then all its objects three times, in another order each time.

    Place, colour and shape of an object come in another order too: whatever is named first is the key to the rest.
    """
    document: Document = [(f"<s>{description}\n", False)]
    for _ in range(3):
        things = list(scene.things)
        rng.shuffle(things)
        style = rng.choice(
            ("{0} {1} {2}", "{1} {0} {2}", "{2} {1} {0}", "{2} {0} {1}", "{1} {2} {0}"),
        )
        told = " and ".join(style.format(t.colour, t.shape, t.position) for t in things)
        document.append((f"{told}\n", True))
    return document


def copying(rng: random.Random) -> Document:
    """Unrelated words and the same words again: the plainest exercise in finding what followed a word."""
    words = " ".join(rng.sample(_CONTENT_WORDS, rng.randint(6, 20)))
    return [(f"<s>{words}\n", False), (f"{words}\n", True)]


# How often each of the QUESTION_TYPES is asked. Places are learnt last and need the most practice.
_PRACTICE = (1, 1, 1, 3, 1, 5)
_CONTENT_WORDS = [*world.COLOURS, *world.SHAPES, *world.ROWS, *world.COLUMNS, *world.NUMBERS]


def read_lesson(rng: random.Random, *, only_copies: bool = False) -> Document:
    """Draw one training document about a fresh training scene.

    Args:
        only_copies: draw a copying or a retelling, never a conversation.
    """
    scene = sample_scene(rng, held_out=False)
    kind = rng.choices(tuple(DESCRIPTIONS), (0.8, 0.2))[0]
    description = DESCRIPTIONS[kind](scene, rng)
    if only_copies or rng.random() < 0.35:
        if rng.random() < (0.7 if only_copies else 0.15):
            return copying(rng)
        return retelling(scene, description, rng)
    if rng.random() < 0.15:
        return captioned(scene, description)
    turns: list[tuple[str, str]] = []
    wanted = rng.randint(1, 2)
    while len(turns) < wanted:
        if rng.random() < 0.1:
            turns.append((world.CAPTION_REQUEST, caption(scene)))
        elif question := ask(scene, rng.choices(world.QUESTION_TYPES, _PRACTICE)[0], rng):
            turns.append((question.text, question.answer))
            # It may name an object that is not there, which the next answer would be looked up from.
            if question.kind == "existence":
                break
    return conversation(description, turns)
