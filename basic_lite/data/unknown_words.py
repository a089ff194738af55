"""Words of the data that a model's tokenizer has no token for: it can't learn them, and can't read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from basic_lite.data.chat import ChatFormat
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record
from basic_lite.data.tokens import IGNORE

# Records that are looked at, and the share of unknown tokens from which something is said.
LOOKED_AT, MANY = 200, 0.05


@dataclass(frozen=True)
class UnknownWords:
    """Much of one side of the data is unknown.

    Attributes:
        whose: answers or questions.
        share: of its tokens, 0 to 1.
    """

    whose: str
    share: float
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}"


def spread(count: int) -> list[int]:
    """At most ``LOOKED_AT`` numbers below a count, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist() if count else []


def unknown_words(
    chat: ChatFormat, records: Sequence[Record], kept: Sequence[int] | np.ndarray, max_length: int
) -> Iterator[UnknownWords]:
    """What to say of some of the records that can be used; nothing where few words are unknown.

    Args:
        kept: numbers of those that can be used.
    """
    tokenizer = chat.tokenizer
    unknown, stands = tokenizer.unk_token_id, tokenizer.unk_token
    # GPT-2's family has one token for "unknown" and for the end of a text, and knows every byte.
    if unknown is None or unknown == tokenizer.eos_token_id:
        return
    marks = {IGNORE, *tokenizer.all_special_ids} - {unknown}  # no words
    some = [records[int(kept[at])] for at in spread(len(kept))]
    answers = [label for one in some for label in chat.encode(one, max_length).labels if label not in marks]
    texts = {turn.text.replace(IMAGE_PLACEHOLDER, "") for one in some for turn in one.turns if turn.role == "human"}
    questions = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    for tokens, whose, then, mend in (
        (answers, "answers", "it can't learn them", "take another model, or texts in its language"),
        (questions, "questions", "it can't tell what is asked", "take another model, or ask in words that it knows"),
    ):
        share = tokens.count(unknown) / max(len(tokens), 1)
        if share > MANY:
            what = f"the model doesn't know {share:.0%} of the words of the {whose} ({stands} stands for them)"
            yield UnknownWords(whose, share, f"{what}, so {then}", mend)
