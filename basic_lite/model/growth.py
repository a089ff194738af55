"""How much longer a tokenizer's own rules make a text: a rule of 50 letters for one, five times, fills any memory.

The rules are read, and no text is given to all of them: that may have no end. Each kind of rule has the most characters
that it makes of one. Two rules multiply where the later one may match what the earlier one has made.
"""

import base64
import binascii
import math
import re
import string
import warnings
from collections.abc import Callable, Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from tokenizers import Regex, normalizers

from basic_lite.errors import UserError
from basic_lite.outside import parse_json

# What a tokenizer's author chooses: rules that replace, and the words around a text. Published ones have 1 or 2.
_MOST_CHOSEN = 8
# With Unicode's own forms, of which NFKC makes 18 characters of one. Published ones have up to 972 (ALBERT, XLNet:
# NFKD, Lowercase, and a table of SentencePiece's, which also has a line of 18).
_MOST = 1000
# Characters that are put before, around or in place of something, once each.
_MOST_ADDED = 64
_MOST_RULES = 1000
# Characters of one token. Published ones have runs of some hundred spaces.
_LONGEST_TOKEN = 4096
_UNICODE = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4}
# What a sequence calls the rules in it.
_INSIDE = ("normalizers", "pretokenizers", "decoders", "processors")
# Every character of a keyboard; and one that no text has.
_EACH, _MARK = string.printable, "\0"
# Python and the library read these in regular expressions differently: brackets in brackets, {2}? and groups' marks.
_READ_DIFFERENTLY = re.compile(r"\[[^\]]*\[|\[\^?\]|&&|\}\?|\(\?(?![:=!]|<[=!])")


def require_bounded_growth(tokenizer: Any, name: str, key: str) -> None:
    """Refuse a tokenizer that makes a long text of a short one, or that breaks off the library that runs its rules.

    Args:
        tokenizer: as transformers has loaded it; one without a `tokenizer.json` has no rules to look at.
        name: folder or hub name.
        key: recipe key or argument that names it.

    Raises:
        UserError: says which rules, and by how much.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    found = _too_much(backend)
    if found is not None:
        raise UserError(
            f"{key}: the tokenizer of {name} can't be used: {found}; take the tokenizer.json that its authors publish"
        )


def _too_much(backend: Any) -> str | None:
    before = [*_rules(backend.normalizer), *_rules(backend.pre_tokenizer)]
    after = list(_rules(backend.decoder))
    if (most := max(len(before), len(after))) > _MOST_RULES:
        return f"it has {most:,} rules for each text, and {_MOST_RULES:,} is the most"
    if (pattern := _puts_something_where_nothing_is([*before, *after])) is not None:
        return f"its rule {pattern!r:.80} matches nothing and puts something there"
    if any(rule["type"] == "Prepend" and not rule["prepend"] for rule in before):
        return "its rule Prepend puts nothing before a text, and the library breaks off at the next rule"
    for what, rules in (("a text", before), ("an answer", after)):
        chosen, whole = _product(rules, _chosen), _product(rules, _factor)
        if chosen > _MOST_CHOSEN:
            return f"its rules make {what} up to {chosen:,.0f} times as long, and {_MOST_CHOSEN} is the most"
        if whole > _MOST:
            return f"its rules make {what} up to {whole:,.0f} times as long, and {_MOST:,} is the most"
    around = list(_rules(backend.post_processor))
    if (copies := _product(around, _copies)) > _MOST_CHOSEN:
        return f"it writes each text {copies:,.0f} times (post_processor), and {_MOST_CHOSEN} is the most"
    model = backend.model
    texts = [getattr(model, one, None) for one in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")]
    added = sum(len(str(rule.get("prepend", ""))) for rule in before) + sum(map(_specials, around))
    if (most := max([added, *(len(text) for text in texts if isinstance(text, str))])) > _MOST_ADDED:
        return f"it adds {most:,} characters or tokens to a text or word, and {_MOST_ADDED} is the most"
    if (longest := max(map(len, backend.get_vocab()), default=0)) > _LONGEST_TOKEN:
        return f"it has a token of {longest:,} characters, and {_LONGEST_TOKEN:,} is the most"
    return None


def _product(rules: list[dict[str, Any]], factor: Callable[[dict[str, Any]], float]) -> float:
    """The largest product along rules of which each may match what the one before it has made.

    A rule that replaces a literal text matches its characters alone, and makes others alone. Any other rule may match,
    and make, all characters.
    """
    # As logarithms, since thousands of rules have a product that no number holds.
    largest = of_all = 0.0
    of: dict[str, float] = {}
    for rule in rules:
        matched, made = _matched(rule), set(rule["content"]) if rule["type"] == "Replace" else None
        before = largest if matched is None else max([of_all, *(of.get(one, 0.0) for one in matched)])
        after = before + math.log(factor(rule))
        largest = max(largest, after)
        if made is None:
            of_all = max(of_all, after)
        else:
            of.update({one: max(of.get(one, 0.0), after) for one in made})
    return math.exp(min(700.0, largest))


def _matched(rule: dict[str, Any]) -> set[str] | None:
    """The characters that a rule matches; None: it may be all."""
    return set(rule["pattern"].get("String") or "") or None if rule["type"] == "Replace" else None


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """The rules of a part of a tokenizer, in their order."""
    if part is None:
        return
    # What pickle would keep is JSON of this part alone, without the vocabulary.
    left = [parse_json(bytes(part.__getstate__()).decode())]
    while left:
        rule = left.pop(0)
        if rule["type"] == "Sequence":
            left[:0] = next(rule[one] for one in _INSIDE if one in rule)
        else:
            yield rule


def _factor(rule: dict[str, Any]) -> float:
    return max(_chosen(rule), _UNICODE.get(rule["type"], 1), _longest_of_charsmap(rule))


def _chosen(rule: dict[str, Any]) -> float:
    """The most characters that a rule of replacement makes of one."""
    if rule["type"] != "Replace":
        return 1.0
    ((kind, pattern),) = rule["pattern"].items()
    length = len(rule["content"])
    if kind == "String":
        return max(1.0, length / len(pattern)) if pattern else 1.0 + length
    return 1.0 + length if _may_be_empty(pattern) else max(1.0, length)


def _may_be_empty(pattern: str) -> bool:
    """Whether a regular expression may match no character. One that Python can't read, or reads differently, may."""
    if _READ_DIFFERENTLY.search(re.sub(r"\\.", "_", pattern, flags=re.DOTALL)):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # It reads the pattern alone: to match one may take years.
            fewest, _ = _parser.parse(pattern).getwidth()
    except (re.error, OverflowError, RecursionError, ValueError):
        return True
    return not fewest


def _longest_of_charsmap(rule: dict[str, Any]) -> float:
    """Of SentencePiece's table of replacements: a tree of keys, then what they become, each with a zero at its end."""
    if rule["type"] != "Precompiled":
        return 1.0
    try:
        table = base64.b64decode(rule["precompiled_charsmap"])
    except (binascii.Error, TypeError):
        return math.inf
    made = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return max(1.0, *(len(one.decode("utf-8", "replace")) for one in made))


def _puts_something_where_nothing_is(rules: list[dict[str, Any]]) -> str | None:
    """The first pattern of a replacement that matches no character. It may also break off the library, with a panic."""
    replacements = [rule for rule in rules if rule["type"] == "Replace" and rule["content"]]
    for kind, pattern in dict.fromkeys(next(iter(rule["pattern"].items())) for rule in replacements):
        if not pattern:
            return ""
        if kind == "Regex":
            marking = normalizers.Replace(Regex(pattern), _MARK)
            for text in ("", _EACH):
                made = marking.normalize_str(text)
                marks = made.count(_MARK)
                if marks > len(text) - (len(made) - marks):
                    return str(pattern)
    return None


def _copies(rule: dict[str, Any]) -> float:
    """How often a text stands in what a template makes of it."""
    return max(1.0, sum("Sequence" in piece for piece in rule.get("single") or []))


def _specials(rule: dict[str, Any]) -> int:
    """Tokens that a template puts around a text."""
    ids = {name: len(one["ids"]) for name, one in (rule.get("special_tokens") or {}).items()}
    used = [piece["SpecialToken"]["id"] for piece in rule.get("single") or [] if "SpecialToken" in piece]
    return sum(ids.get(one, 1) for one in used)
