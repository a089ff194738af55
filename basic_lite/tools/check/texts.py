"""What is said in the records: blank and endless answers, special tokens, scripts, questions with one answer."""

import re
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from basic_lite.data.record import IMAGE_PLACEHOLDER, Record
from basic_lite.scoring.metrics.exact import normalise
from basic_lite.tools.check.languages import Sampled

# Characters from which an answer is looked at for repetition, and the part that packing leaves of one that repeats.
_LONG, _REPEATS = 400, 0.12
# Places that are kept of each kind, as examples.
_KEPT = 60
# A question is common from so many times on.
COMMON = 5
# Special tokens of common chat formats. They are looked for beside those of the model's own tokenizer: data is often
# made with another model.
USUAL_TOKENS = (
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endofprompt|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<end_of_utterance>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|image_1|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<video>", "<IMG_CONTEXT>"),
)


@dataclass
class Counted:
    """How many records there are of a kind, and where the first of them are."""

    count: int = 0
    places: list[int] = field(default_factory=list)

    def add(self, index: int) -> None:
        """One more."""
        self.count += 1
        if len(self.places) < _KEPT:
            self.places.append(index)


@dataclass
class Prior:
    """How far the question alone tells the answer.

    Attributes:
        pairs: questions with their answers, those of common questions alone.
        right: of them, how many have the commonest answer to their question.
        worst: the common questions whose commonest answer is most often right: record, times, share.
    """

    pairs: int
    right: int
    worst: list[tuple[int, int, float]]


class Texts:
    """Facts of texts, record by record.

    Attributes:
        asked, said: a sample of the records' last questions, and of their answers.

    Args:
        special: further texts that stand for special tokens: those of the model.
    """

    def __init__(self, special: Collection[str] = ()) -> None:
        tokens = {*USUAL_TOKENS, *special, IMAGE_PLACEHOLDER}
        self._in_answers = _any_of(tokens)
        # In a question it stands where a picture goes.
        self._in_questions = _any_of(tokens - {IMAGE_PLACEHOLDER})
        self.blank, self.repeating, self.with_token = Counted(), Counted(), Counted()
        self.tokens: Counter[str] = Counter()
        self.scripts: Counter[str] = Counter()
        self.examples: dict[str, int] = {}
        self.asked, self.said = Sampled(), Sampled()
        self._questions, self._replies, self._records = array("q"), array("q"), array("q")

    def add(self, index: int, record: Record) -> None:
        """Look at one record."""
        asked, blank, repeats, token = "", False, False, False
        said: list[str] = []
        for turn in record.turns:
            text = turn.text
            special = self._in_questions if turn.role == "human" else self._in_answers
            if found := special.findall(text):
                token = True
                self.tokens.update(found)
            if turn.role != "gpt":
                asked = text
                continue
            said.append(text)
            blank = blank or not text.strip()
            repeats = repeats or is_repetitive(text)
            question = normalise(asked.replace(IMAGE_PLACEHOLDER, " "))
            self._questions.append(hash(question))
            self._replies.append(hash(normalise(text)))
            self._records.append(index)
        for kind, found_here in ((self.blank, blank), (self.repeating, repeats), (self.with_token, token)):
            if found_here:
                kind.add(index)
        self.asked.add(asked)
        self.said.add(" ".join(said))
        script = script_of(" ".join(said))
        self.scripts[script] += 1
        self.examples.setdefault(script, index)

    def prior(self) -> Prior:
        """How often the commonest answer to the same question is right, of questions that are asked again and again."""
        questions, replies, records = (
            np.frombuffer(one, dtype=np.int64) for one in (self._questions, self._replies, self._records)
        )
        if not len(questions):
            return Prior(0, 0, [])
        order = np.lexsort((replies, questions))
        questions, replies, records = questions[order], replies[order], records[order]
        new_question = np.r_[True, questions[1:] != questions[:-1]]
        new_pair = new_question | np.r_[True, replies[1:] != replies[:-1]]
        pair_starts = np.flatnonzero(new_pair)
        pair_sizes = np.diff(np.r_[pair_starts, len(questions)])
        starts = np.flatnonzero(new_question)
        sizes = np.diff(np.r_[starts, len(questions)])
        best = np.maximum.reduceat(pair_sizes, np.searchsorted(pair_starts, starts))
        common = sizes >= COMMON
        shares = best[common] / sizes[common]
        # The shares that are largest, and of those the questions that are asked most.
        ranked = np.lexsort((-sizes[common], -shares))[:_KEPT]
        worst = [
            (int(records[starts[common][at]]), int(sizes[common][at]), float(shares[at])) for at in ranked.tolist()
        ]
        return Prior(int(sizes[common].sum()), int(best[common].sum()), worst)


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def is_repetitive(text: str) -> bool:
    """Whether a long text says the same again and again: packing leaves next to nothing of it."""
    if len(text) < _LONG:
        return False
    data = text.encode("utf-8", "replace")
    return len(zlib.compress(data, 1)) < _REPEATS * len(data)


def script_of(text: str) -> str:
    """The script that most letters of a text are of, as Unicode names it: Latin, Cyrillic, CJK …; no letters: none."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    letters = Counter(script for sign in text[:2000] if (script := _script_of(sign)))
    return letters.most_common(1)[0][0] if letters else "none"


@lru_cache(maxsize=20_000)
def _script_of(sign: str) -> str:
    if not sign.isalpha():
        return ""
    name = unicodedata.name(sign, "").split(" ")[0]
    return name if name == "CJK" else name.capitalize()
