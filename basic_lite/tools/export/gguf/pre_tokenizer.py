"""Which of llama.cpp's pre-tokenizers cuts a text as a byte-level BPE tokenizer does.

llama.cpp's converter recognises tokenizers by a hash of the ids of one text, so it knows published vocabularies only.
The rule that cuts the text stands in tokenizer.json and is what llama.cpp's `tokenizer.ggml.pre` selects
(`src/llama-vocab.cpp`, version 0.5), so it is compared itself.
"""

from typing import Any

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.converter import OTHERWISE

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_BYTES, _DIGITS = "byte level with GPT-2's rule", "single digits"
_THREES = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_SINGLES = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED}"

KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((_BYTES,), False): "gpt-2",
    ((_DIGITS, _BYTES), False): "smollm",
    ((_SINGLES,), False): "qwen2",
    ((_THREES,), True): "llama-bpe",
    ((_THREES,), False): "dbrx",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
}
"""(rules in their order, whether a whole word in the vocabulary is taken without merging) → llama.cpp's name."""

INEXACT = ("tekken", "gpt-4o")
"""Those in which llama.cpp leaves the classes of upper and lower case out and approximates them."""


def pre_tokenizer_of(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer of a byte-level BPE tokenizer.

    Args:
        tokenizer: tokenizer.json.

    Raises:
        UserError: llama.cpp has none that cuts a text this way.
    """
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    rules = tuple(_rule(step) for step in steps)
    rules = tuple(rule for rule in rules if rule)
    name = KNOWN.get((rules, bool(tokenizer["model"].get("ignore_merges"))))
    if name is None:
        raise UserError(
            f"the tokenizer cuts a text into words in a way that GGUF files are not written for here "
            f"({'; '.join(rules) or 'no rule'}); {OTHERWISE}"
        )
    return name


def _rule(step: dict[str, Any]) -> str:
    """One step in words; empty for the byte-level step after a rule of its own, which cuts nothing."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return _BYTES if step.get("use_regex", True) else ""
    if kind == "Digits" and step.get("individual_digits"):
        return _DIGITS
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step["pattern"]
        return str(pattern.get("Regex", pattern))
    return f"{kind} { ({k: v for k, v in step.items() if k != 'type'}) }"
