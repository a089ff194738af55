"""What the demo's LLM reads: a tokenizer of one token per word, scenes told in words, conversations about them."""

import random
from collections.abc import Callable

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from basic_lite.demo import world
from basic_lite.demo.world import COLOURS, COLUMNS, NUMBERS, ROWS, SHAPES, Scene, Thing, ask, caption, sample_scene

_CONTENT_WORDS = [*COLOURS, *SHAPES, *ROWS, *COLUMNS, *NUMBERS]

PIECE = r"\w+|[^\w\s]|\n"
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"

# `generation` marks what the assistant says, which lets transformers return a mask of the supervised tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'assistant: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ['user', 'system'] %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{% else %}"
    "{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant: ' }}{% endif %}"
)

_WORDS = """
    user assistant system describe the image what colour shape is object where how many objects are there
    left of a an and at empty yes no
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: words, punctuation marks and line breaks are tokens; letter case and spaces are not kept.

    It has no `<image>` token: whoever joins the LLM to a vision encoder adds one, as with any LLM.
    """
    words = [PAD, BOS, EOS, UNK, "\n", *":?.,", *_WORDS.split(), *_CONTENT_WORDS]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    core.normalizer = Lowercase()
    # `invert` makes the pattern say what a token is; all else, which is blanks, is dropped.
    core.pre_tokenizer = Split(Regex(PIECE), behavior="removed", invert=True)
    core.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=512,
        # Removing blanks before punctuation would be a second, lossy rule beside the pre-tokenizer's.
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


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


DESCRIPTIONS: dict[str, Callable[[Scene, random.Random], str]] = {"map": drawn_map, "list": shuffled_list}


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
        style = rng.choice(("{0} {1} {2}", "{1} {0} {2}", "{2} {1} {0}", "{2} {0} {1}", "{1} {2} {0}"))
        told = " and ".join(style.format(t.colour, t.shape, t.position) for t in things)
        document.append((f"{told}\n", True))
    return document


def copying(rng: random.Random) -> Document:
    """Unrelated words and the same words again: the plainest exercise in finding what followed a word."""
    words = " ".join(rng.sample(_CONTENT_WORDS, rng.randint(6, 20)))
    return [(f"<s>{words}\n", False), (f"{words}\n", True)]


# How often each of the QUESTION_TYPES is asked. Places are learnt last and need the most practice.
_PRACTICE = (1, 1, 1, 3, 1, 5)


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
