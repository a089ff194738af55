"""Words of texts in any script, those that are written without spaces too."""

import re

# The first character of scripts that are written without spaces (CJK and beyond): in them one letter can be a word.
UNSPACED = "\u2e80"
# Korean has spaces.
_LETTER = rf"{UNSPACED}-\uabff\uf900-\U0010ffff"
_WORDS = re.compile(rf"[{_LETTER}]|[^\s{_LETTER}]+")


def word_count(text: str) -> int:
    """Words of a text; of Chinese and Japanese, which have no spaces, each letter or sign is one."""
    return len(_WORDS.findall(text))
