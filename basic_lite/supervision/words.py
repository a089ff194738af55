"""Token ids as words, so that the refinement curve can compare visual tokens with a text."""

from transformers import PreTrainedTokenizerBase

from basic_lite.unspaced import UNSPACED


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
