"""A record's turns put in order, with a mark where each image goes.

What published data holds, and what is done with it:

- a gpt turn before the first human turn is dropped, as LLaVA-1.5 does;
- turns of one role in a row become one, joined by a line break; blank human turns count as turns; an answer to learn
  and one that isn't can't become one, so those are a problem;
- a system turn at the start is the system prompt; a later one joins the human turn after it;
- a human turn at the end, without an answer, is dropped; if it has an image, that is a problem;
- in a human turn with one `<image>`, the image moves to the front, then a line break, as in LLaVA-1.5
  (`preprocess_multimodal`); several images in one turn stay where they are in the text;
- images without any `<image>` in the record go to the front of the first human turn;
- `<image>` in a human turn is always a placeholder, so one without an image is a problem; in a gpt or system turn it is
  text, and never becomes an image token.
"""

from basic_lite.data.problems import BadPlaceholders, BadRecord, NoSupervisedToken
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record, Role, Turn

# Unicode noncharacters, reserved for a program's own use: no text has them, and no template strips them.
IMAGE = "\ufdd0"
BREAK = "\ufdd1"
START = "\ufdd2"
END = "\ufdd3"
_FOREIGN = {ord(mark): "\ufffd" for mark in (IMAGE, BREAK, START, END)}


def conversation(record: Record, *, answered: bool = True) -> list[Turn]:
    """The turns in order: at most one system turn, then human and gpt in alternation, `IMAGE` for each image.

    Args:
        answered: For training, ends with a gpt turn. False: a last human turn stays, for generation.

    Raises:
        BadPlaceholders: images and `<image>` don't fit together.
        BadRecord: no human turn, or a learned answer follows one that isn't, with no question between.
        NoSupervisedToken: for training, no answer, or none that is learned.
    """
    turns = [_marked(turn) for turn in record.turns]
    if not any(turn.role == "human" for turn in turns):
        raise BadRecord("it has no question: nobody asks in it", "add a user's turn before the answer")
    _check_counts(record, turns)
    if record.images and not any(IMAGE in turn.text for turn in turns):
        first = next(n for n, turn in enumerate(turns) if turn.role == "human")
        rest = turns[first].text.strip()
        turns[first] = Turn("human", IMAGE * len(record.images) + (f"\n{rest}" if rest else ""))
    ordered = _alternating(turns)
    if answered and not any(turn.role == "gpt" and turn.text.strip() for turn in ordered):
        raise NoSupervisedToken("it has no answer: no text follows a question", "add one")
    if answered and not any(turn.role == "gpt" and turn.text.strip() and turn.learned for turn in ordered):
        raise NoSupervisedToken("all its answers are marked as not to be learned", "take the record out")
    if answered and ordered[-1].role == "human":
        if IMAGE in ordered[-1].text:
            raise BadPlaceholders("an image is in a last question that no answer follows", "add the answer")
        ordered.pop()
    return ordered


def _marked(turn: Turn) -> Turn:
    text = turn.text.translate(_FOREIGN)
    if turn.role != "human" or IMAGE_PLACEHOLDER not in text:
        return Turn(turn.role, text, turn.learned)
    text = text.replace(IMAGE_PLACEHOLDER, IMAGE)
    if text.count(IMAGE) == 1:
        rest = text.replace(IMAGE, "").strip()
        text = f"{IMAGE}\n{rest}" if rest else IMAGE
    return Turn("human", text)


def _check_counts(record: Record, turns: list[Turn]) -> None:
    places = sum(turn.text.count(IMAGE) for turn in turns)
    images = len(record.images)
    if places == images or not places:
        return
    what = f"its questions have {places} <image> but it has {images or 'no'} image{'s' * (images != 1)}"
    raise BadPlaceholders(what, "write <image> once for each image, or leave it out altogether")


def _alternating(turns: list[Turn]) -> list[Turn]:
    ordered: list[tuple[Role, list[str], list[bool]]] = []
    pending: list[str] = []
    asked = False
    for turn in turns:
        if turn.role == "system" and asked:
            pending.append(turn.text)
            continue
        if turn.role == "gpt" and not asked:
            continue
        if not ordered or ordered[-1][0] != turn.role:
            ordered.append((turn.role, [], []))
        _, texts, learned = ordered[-1]
        if turn.role == "human":
            texts += pending
            pending, asked = [], True
        texts.append(turn.text)
        learned += [turn.learned] * bool(turn.text.strip())
    if any(len(set(learned)) > 1 for _, _, learned in ordered):
        raise BadRecord(
            "of two answers in a row one is marked as not to be learned, and they become one answer",
            "put a user's turn between them, or mark both",
        )
    return [Turn(role, "\n".join(texts), all(learned)) for role, texts, learned in ordered]
