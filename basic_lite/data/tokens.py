"""Token ids of a text that is cut into pieces, equal to those of the whole wherever no token crosses a cut.

A text is cut at images and where an answer starts or ends. So labels are exact, and a prompt has the same ids in
training and in generation. Some tokenizers encode the first word of a text in another way than later ones
(SentencePiece's dummy prefix). They are given what stands before the piece too, and its ids are taken off again.
"""

import re
from typing import Any

from basic_lite.data.conversation import BREAK, IMAGE

IGNORE = -100

# Stand before a piece that must not, or can't, be joined with what it really follows. The second is in no
# vocabulary but as a byte, so it merges with nothing.
_NEUTRAL = "\n"
_APART = "\x01"
_CACHED = 4096


class Tokens:
    """Encodes marked text: `IMAGE` becomes N image tokens, `BREAK` keeps its two sides apart.

    Args:
        tokenizer: A transformers tokenizer, fast or slow.
        image_token_id: Id that stands N times for each image.
        tokens_per_image: N.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, tokens_per_image: int) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = int(image_token_id)
        self.tokens_per_image = int(tokens_per_image)
        if self.tokens_per_image < 1 or self.image_token_id < 0:
            raise ValueError(f"image token id {image_token_id}, {tokens_per_image} tokens an image")
        self._cache: dict[tuple[str, str], list[int]] = {}
        self._heads: dict[str, list[int]] = {}
        plain, full = self.raw("a"), list(tokenizer.encode("a"))
        if not plain:
            start = int(bool(full) and full[0] == tokenizer.bos_token_id)
        else:
            start = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), 0)
        # What the tokenizer itself puts at the start of a text.
        self.bos: list[int] = full[:start]
        known = self.image_token_id < len(tokenizer)
        self.image_text = tokenizer.convert_ids_to_tokens(self.image_token_id) if known else None
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= {str(token) for token in tokenizer.all_special_tokens}
        special |= {self.image_text} if self.image_text else set()
        # A one-character token can't be broken up; such a token is no control token.
        self.special = tuple(sorted((token for token in special if len(token) > 1), key=len, reverse=True))
        self._firsts = {token[0] for token in self.special}
        alternatives = "|".join(map(re.escape, self.special)) or "(?!)"
        self._literal = re.compile(alternatives)
        self._hidden = self._ids_behind_a_normalizer()
        self.leading_special = re.compile(rf"\s*(?:{alternatives})")
        # Whether a piece has other ids alone than after something.
        self._positional = any(self.raw(_NEUTRAL + text) != self.raw(_NEUTRAL) + self.raw(text) for text in ("a", " a"))
        text = self.image_text
        if text is None or self.raw(text) != [self.image_token_id]:
            text = tokenizer.eos_token or tokenizer.bos_token or ""
        self._beside_image = text

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_heads": {}}

    def harmless(self, text: str) -> str:
        """Text of a record, with the written-out special tokens in it (`</s>`, `<image>`) broken up."""
        if not self._hidden and not any(first in text for first in self._firsts):
            return text
        parts, start = [], 0
        while found := self._literal.search(text, start):
            cut = found.start() + 1
            parts.append(text[start:cut])
            start = cut
        text = BREAK.join([*parts, text[start:]])
        return self._broken_up(text) if self._hidden else text

    def _ids_behind_a_normalizer(self) -> set[int]:
        """Special tokens that are looked for in the text as the tokenizer rewrites it (NFKC, small letters)."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return set()
        added = backend.get_added_tokens_decoder()
        return {number for number, token in added.items() if token.normalized and token.content in self.special}

    def _broken_up(self, text: str) -> str:
        """The text, broken up wherever it becomes a special token once it is rewritten: ＜｜stop｜＞ is <|stop|>."""
        whole: list[str] = []
        left = text.split(BREAK)[::-1]
        while left:
            part = left.pop()
            cut, start = [], 0
            for end in self._cuts(part):
                cut.append(part[start:end])
                start = end
            if cut:  # its parts may become another one
                left += [part[start:], *reversed(cut)]
            else:
                whole.append(part)
        return BREAK.join(whole)

    def _cuts(self, text: str) -> list[int]:
        """Where to cut the text so that none of its special tokens stays whole."""
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = [span for one, span in zip(found.ids, found.offsets, strict=True) if one in self._hidden]
        # A token of a single sign can't be cut.
        return [start + 1 for start, end in spans if end - start > 1]

    def encode(self, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[int], int]:
        """Ids and labels of pieces (marked text, supervised?), and the number of images.

        Label 0 is `IGNORE` always: nothing predicts the first token.
        """
        ids = list(self.bos)
        labels = [IGNORE] * len(ids)
        images = 0
        before = ""
        for text, supervised in pieces:
            for part in re.split(f"([{IMAGE}{BREAK}])", text):
                if part == IMAGE:
                    images += 1
                    ids += [self.image_token_id] * self.tokens_per_image
                    labels += [IGNORE] * self.tokens_per_image
                    before = self._beside_image
                elif part == BREAK:
                    before = _NEUTRAL
                elif part:
                    new = self._after(before, part)
                    ids += new
                    labels += new if supervised else [IGNORE] * len(new)
                    before = part[-12:]
                    if part.endswith(self.special):
                        before = next(token for token in self.special if part.endswith(token))
        if self.bos and ids[len(self.bos) : 2 * len(self.bos)] == self.bos:
            # The chat template has written the start token too: once is enough.
            ids, labels = ids[len(self.bos) :], labels[len(self.bos) :]
        if labels:
            labels[0] = IGNORE
        return ids, labels, images

    def _after(self, before: str, text: str) -> list[int]:
        """Ids of a text that stands after another."""
        key = (before, text)
        if (known := self._cache.get(key)) is not None:
            return known
        ids = self._uncached(before, text)
        if len(text) < 400 and len(self._cache) < _CACHED:
            self._cache[key] = ids
        return ids

    def _uncached(self, before: str, text: str) -> list[int]:
        if not before:
            return self.raw(text)
        if before in self.special:
            head, whole = self._head(before), self.raw(before + text)
            if whole[: len(head)] == head:
                # Nothing may be left of a space that the special token swallows.
                return whole[len(head) :]
        elif not self._positional:
            return self.raw(text)
        alone = self.raw(text)
        for context in (before, _NEUTRAL, _APART):
            head, whole = self._head(context), self.raw(context + text)
            rest = whole[len(head) :]
            # An unknown token hides where it ends.
            sure = self.tokenizer.unk_token_id not in head and bool(rest) == bool(alone)
            if whole[: len(head)] == head and sure:
                return rest
        return alone

    def _head(self, context: str) -> list[int]:
        if context not in self._heads and len(self._heads) < _CACHED:
            self._heads[context] = self.raw(context)
        return self._heads[context] if context in self._heads else self.raw(context)

    def raw(self, text: str) -> list[int]:
        """Ids of a text, special tokens in it recognised, none added."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        # Settings that a padded or truncated call of the same tokenizer has left behind.
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids
