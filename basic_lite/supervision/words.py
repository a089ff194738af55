"""Token ids as words, so that the refinement curve can compare visual tokens with a text."""

import re

from transformers import PreTrainedTokenizerBase

# The first character of scripts that are written without spaces (CJK and beyond): in them one letter can be a word.
UNSPACED = "\u2e80"
# Korean has spaces.
_LETTER = rf"{UNSPACED}-\uabff\uf900-\U0010ffff"
_WORDS = re.compile(rf"[{_LETTER}]|[^\s{_LETTER}]+")


def word_count(text: str) -> int:
    """Words of a text; of scripts that are written without spaces each letter is one."""
    return len(_WORDS.findall(text))


class Words:
    """Token ids → words; "" for what can't match. Each id is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ignored: set[int]) -> None:
        self._tokenizer = tokenizer
        self._known = dict.fromkeys(ignored, "")

    def of(self, ids: list[int]) -> list[str]:
        """The word of each id."""
        for i in ids:
            if i not in self._known:
                self._known[i] = self._word(self._tokenizer.decode([i]))
        return [self._known[i] for i in ids]

    @staticmethod
    def _word(piece: str) -> str:
        word = piece.strip().strip("#▁").casefold()
        letters = [c for c in word if c.isalpha()]
        unspaced = any(letter >= UNSPACED for letter in letters)
        return word if len(letters) >= 3 or unspaced else ""
