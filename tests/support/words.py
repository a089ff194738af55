"""A tokenizer for the tiny models of ``tests.support.supervision``: each id is a word."""

from __future__ import annotations

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.support import supervision as kit

SHORT = {3: "a", 4: "12", 5: ".", 6: "of", 8: "狗"}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0..2 are special, a few too short to count, 9 and 10 one word in two spellings, the rest words."""
    names = {i: f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(kit.WORDS)}
    names |= {0: "<pad>", 1: "<s>", 2: "</s>", kit.IMAGE: "<image>", 9: "Tree", 10: "tree", **SHORT}
    base = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
