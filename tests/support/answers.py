"""Several programs asked the same questions: what each one said, and how far it is from us."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import pixels
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record, Turn
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.bundle import load_trained
from bench.world.stamps import Pictures

MAX_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """A picture's absolute path, and a question about it."""

    image: str
    question: str


@dataclass(frozen=True)
class Answer:
    """A greedy answer, its tokens, and the log-probability of each one.

    Attributes:
        margins: how far each token's log-probability is above that of the second choice, where it is known.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    margins: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """A program's answers beside ours.

    Attributes:
        equal: answers that are ours, of ``asked``.
        changed: answers that another picture changes.
        largest: largest difference of the log-probability of a token that both chose at the same place.
        differences: one sentence for each answer that isn't ours.
    """

    program: str
    asked: int
    equal: int
    changed: int
    largest: float
    differences: list[str]


def prompts_of(pictures: Pictures, *, swapped: bool = False) -> list[Prompt]:
    """The held-out questions; ``swapped``: each with the picture of the next one."""
    records = json.loads(pictures.held_out.read_text(encoding="utf-8"))
    names = [record["image"] for record in records]
    shown = names[1:] + names[:1] if swapped else names
    questions = [record["conversations"][0]["value"].removeprefix(f"{IMAGE_PLACEHOLDER}\n") for record in records]
    return [Prompt(str(pictures.images / name), text) for name, text in zip(shown, questions, strict=True)]


def write_job(path: Path, folder: Path, prompts: Sequence[Prompt]) -> Path:
    """What a program is to do with an exported folder, as `tests/real/answers_of_*.py` read it."""
    job = {"folder": str(folder), "max_tokens": MAX_TOKENS, "prompts": [asdict(prompt) for prompt in prompts]}
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def read_answers(path: Path) -> list[Answer]:
    return [Answer(**row) for row in json.loads(path.read_text(encoding="utf-8"))["answers"]]


def our_answers(run: Path, prompts: Sequence[Prompt], scored: int) -> list[Answer]:
    """The trained model's own: NF4, adapter and projector as they were trained.

    Args:
        scored: answers whose log-probabilities are wanted, from the first; the others have none.
    """
    loaded, bundle = load_trained(run, torch.device("cpu"))
    recipe = bundle.recipe
    chat = chat_format(recipe, loaded.frontend)
    records = [
        Record(n, "", "real", (ImageRef.of_file(p.image),), (Turn("human", f"{IMAGE_PLACEHOLDER}\n{p.question}"),))
        for n, p in enumerate(prompts)
    ]
    texts = answer(loaded, chat, records, image_fit=recipe.data.image_fit, batch_size=10, max_new_tokens=MAX_TOKENS)
    return [
        _scored(loaded, recipe, record, chat.prompt(record), text, chat.stop_token_ids)
        if n < scored
        else Answer(text, [], [])
        for n, (record, text) in enumerate(zip(records, texts, strict=True))
    ]


@torch.no_grad()
def _scored(loaded: Loaded, recipe: Recipe, record: Record, prompt: list[int], text: str, stops: list[int]) -> Answer:
    """The log-probabilities of an answer's tokens, and of the one that ends it where it ended."""
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    values = pixels(record.images, loaded.frontend.image_processor, recipe.data.image_fit)
    logits = loaded.model(input_ids=torch.tensor([prompt + ids]), pixel_values=values).logits[0, len(prompt) - 1 :]
    logits[:, loaded.parts.image_token_id] = -torch.inf  # as in `answer`
    logprobs = logits.log_softmax(-1)  # [tokens + 1, V]
    if len(ids) < MAX_TOKENS:
        ids = [*ids, max(stops, key=lambda stop: float(logprobs[-1, stop]))]
    rows, chosen = torch.arange(len(ids)), torch.tensor(ids)
    own = logprobs[rows, chosen]
    logprobs[rows, chosen] = -torch.inf
    return Answer(text, ids, own.tolist(), (own - logprobs[rows].amax(-1)).tolist())


def compare(program: str, ours: Sequence[Answer], theirs: Sequence[Answer], because: str = "") -> Compared:
    """Compare answers to the questions, then the same questions with swapped pictures, in one list each.

    Args:
        because: why the program's numbers differ from ours at all.
    """
    half = len(ours) // 2
    pairs = list(zip(ours, theirs, strict=True))
    drifts = [drift for one, other in pairs for drift in _drifts(one, other)]
    largest = max(drifts, default=0.0)
    differences = [
        f"question {n + 1}: {_why(one, other, largest, because)}"
        for n, (one, other) in enumerate(pairs[:half])
        if one.text != other.text
    ]
    changed = sum(a.text != b.text for a, b in zip(theirs[:half], theirs[half:], strict=True))
    return Compared(program, half, half - len(differences), changed, largest, differences)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both answers begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _drifts(one: Answer, other: Answer) -> list[float]:
    return [abs(a - b) for a, b in zip(one.logprobs, other.logprobs[: common(one.ids, other.ids)], strict=False)]


def _why(ours: Answer, theirs: Answer, largest: float, because: str) -> str:
    place = common(ours.ids, theirs.ids)
    said = f"{theirs.text!r} where ours is {ours.text!r}: "
    if place >= len(ours.ids):
        return said + "the same tokens as ours, written otherwise or not ended"
    margin = ours.margins[place]
    # Two log-probabilities that both move by the drift close twice as large a gap.
    if margin <= 2 * largest:
        return said + (
            f"at token {place + 1} our first choice is {margin:.4f} nats above the second, "
            f"and the drift is up to {largest:.4f}" + (f" ({because})" if because else "")
        )
    return (
        said + f"not explained: at token {place + 1} our margin is {margin:.4f} nats, the drift at most {largest:.4f}"
    )


def table(title: str, rows: Sequence[Compared]) -> str:
    """The comparison as text."""
    lines = [
        title,
        f"  {'program':<44} {'equal to ours':>13} {'changed by another picture':>27} {'largest Δ log p':>16}",
    ]
    for one in rows:
        equal, changed = (f"{count} of {one.asked}" for count in (one.equal, one.changed))
        lines.append(f"  {one.program:<44} {equal:>13} {changed:>27} {one.largest:>16.1e}")
        lines += [f"      {difference}" for difference in one.differences]
    return "\n".join(lines)
