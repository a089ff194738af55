"""A tokenizer's rules are read before they are used: what fills the memory is refused, what is published passes."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from basic_lite.errors import UserError
from basic_lite.model import growth
from basic_lite.model.frontend import load_tokenizer
from basic_lite.model.growth import require_bounded_growth
from basic_lite.tools.written import read_processor

WORDS = {"<unk>": 0, "a": 1, "e": 2, "▁": 3}
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def replace(pattern: str | Regex, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(pattern, content)


def sequence(*rules: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence(list(rules))


def charsmap(*made: str) -> str:
    """SentencePiece's form: the length of a tree, the tree, texts with a zero at each end."""
    return base64.b64encode((0).to_bytes(4, "little") + b"".join(one.encode() + b"\0" for one in made)).decode()


def template(single: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(single=single.strip(), special_tokens=[("<s>", 1)])


def tokenizer(change: Callable[[Tokenizer], object], unk: str = "<unk>") -> Tokenizer:
    made = Tokenizer(models.WordLevel({**WORDS, unk: 4}, unk_token=unk))
    change(made)
    return made


def setting(name: str, value: object) -> Callable[[Tokenizer], object]:
    return lambda one: setattr(one, name, value)


BOMBS: dict[str, tuple[Callable[[Tokenizer], object], str]] = {
    "five rules": (setting("normalizer", sequence(*[replace("e", "e" * 50)] * 5)), "up to 312,500,000 times"),
    "one long rule": (setting("normalizer", replace("e", "e" * 10**6)), "up to 1,000,000 times"),
    "thirty that double": (setting("normalizer", sequence(*[replace("e", "ee")] * 30)), "times as long"),
    "ten thousand": (setting("normalizer", sequence(*[replace("e", "")] * 10_000)), "10,000 rules for each text"),
    "a thousand": (setting("normalizer", sequence(*[replace("e", "ee")] * 1000)), "times as long"),
    "before a letter": (setting("normalizer", replace(Regex("(?=e)"), "e")), "rule '\\(\\?=e\\)' matches nothing"),
    "before a rare one": (setting("normalizer", sequence(*[replace(Regex("(?=ж)"), "ж")] * 30)), "times as long"),
    "at the start": (setting("normalizer", replace(Regex("^"), "e")), "matches nothing and puts something there"),
    "where nothing is": (setting("normalizer", replace(Regex("e*"), "e")), "matches nothing and puts something there"),
    "a beginning of nothing": (
        setting("normalizer", sequence(normalizers.Prepend(""), normalizers.Lowercase())), "Prepend puts nothing before"
    ),
    "nothing": (setting("normalizer", replace("", "e")), "rule '' matches nothing"),
    "nested": (setting("normalizer", sequence(*[sequence(replace("e", "eee"))] * 9)), "up to 19,683 times"),
    "forms of Unicode in turn": (
        setting("normalizer", sequence(*[replace("ل", "ﷺ"), normalizers.NFKC()] * 9)), "and 1,000 is the most"
    ),
    "bytes of bytes": (setting("pre_tokenizer", pre_tokenizers.Sequence([BYTES] * 20)), "and 1,000 is the most"),
    "one feeds the next": (
        setting("normalizer", sequence(replace("a", "eee"), replace("x", "zz"), replace("e", "fff"))), "up to 9 times"
    ),
    "a part of a match is fed": (
        setting("normalizer", sequence(replace("a", "xxb"), replace("bc", "y" * 8))), "up to 12 times"
    ),
    "fed through a form of Unicode": (
        setting("normalizer", sequence(replace("a", "ééé"), normalizers.NFD(), replace("e", "fff"))), "up to 9 times"
    ),
    "a long beginning": (setting("normalizer", normalizers.Prepend("x" * 10**5)), "adds 100,000 characters"),
    "copies": (setting("post_processor", template("<s> " + "$A " * 99)), "writes each text 99 times"),
    "copies of copies": (
        setting("post_processor", processors.Sequence([template("$A $A")] * 30)), "writes each text 1,073,741,824 times"
    ),
    "many marks": (setting("post_processor", template("<s> " * 5000 + "$A")), "adds 5,000 characters or tokens"),
    "in answers": (setting("decoder", decoders.Sequence([decoders.Replace("e", "e" * 50)] * 5)), "make an answer"),
    "a long token": (lambda one: one.add_tokens(["x" * 10**5]), "a token of 100,000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_fills_the_memory_is_refused_unused(name: str) -> None:
    change, told = BOMBS[name]
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer(change))
    began = time.process_time()
    with pytest.raises(UserError, match=rf"^model.llm: the tokenizer of x can't be used: .*{told}.* take the"):
        require_bounded_growth(made, "x", "model.llm")
    assert time.process_time() - began < 1


def test_a_long_word_for_what_is_unknown() -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer(lambda one: None, unk="u" * 3000))
    with pytest.raises(UserError, match=r"adds 3,000 characters or tokens to a text or word"):
        require_bounded_growth(made, "x", "model.llm")


# The rules of published tokenizers.
PUBLISHED: dict[str, Callable[[Tokenizer], object]] = {
    "none": lambda one: None,
    "SmolLM2": setting("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])),
    "Gemma": setting("normalizer", replace(" ", "▁")),
    "Llama 2": setting("normalizer", sequence(normalizers.Prepend("▁"), replace(" ", "▁"))),
    "Llama 3": setting("post_processor", processors.Sequence([processors.ByteLevel(), template("<s> $A")])),
    "CLIP": setting(
        "normalizer", sequence(normalizers.NFC(), replace(Regex(r"\s+"), " "), normalizers.Lowercase())
    ),
    "BERT": setting("normalizer", normalizers.BertNormalizer()),
    "decoder of Llama 2": setting(
        "decoder",
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    ),
    "ALBERT, XLNet": setting(
        "normalizer",
        sequence(replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase())
    ),
    "quotes": setting(
        "normalizer", sequence(*[replace(Regex(one), '"') for one in ("(“|”)", "(‘|’)?'", "[^«]?«", "(?:„|‟)")])
    ),
    "none feeds another": setting("normalizer", sequence(replace("…", "..."), replace("½", "1/2"), replace("ﬁ", "fi"))),
    "dashes": setting("normalizer", sequence(*[replace(one, " ") for one in "–—‐‑‒―"], replace("…", "..."))),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_passes(name: str) -> None:
    require_bounded_growth(PreTrainedTokenizerFast(tokenizer_object=tokenizer(PUBLISHED[name])), "x", "model.llm")


def test_qwens_rules_pass() -> None:
    made = tokenizer(setting("normalizer", normalizers.NFC()))
    split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, BYTES])
    require_bounded_growth(PreTrainedTokenizerFast(tokenizer_object=made), "x", "model.llm")


class Table:
    """A part of a tokenizer with a table of SentencePiece's, which only its library can make for real."""

    def __init__(self, *made: str) -> None:
        self.made = made

    def __getstate__(self) -> bytes:
        return f'{{"type": "Precompiled", "precompiled_charsmap": "{charsmap(*self.made)}"}}'.encode()


def test_tables_of_replacements() -> None:
    assert [growth._longest_of_charsmap(one) for one in growth._rules(Table("ab", "x" * 18, "ﷺ"))] == [18]
    assert [growth._longest_of_charsmap(one) for one in growth._rules(Table("e" * 10**5))] == [10**5]


def test_albert_and_xlnet_pass() -> None:
    """Their table, which only its library can make for real, is the last rule."""
    rules = [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, *growth._rules(Table("x" * 18))]
    assert 500 < round(growth._product(rules, growth._factor)) == 972 < growth._MOST


@pytest.mark.parametrize(
    "pattern, empty",
    [("(“|”)", False), ("e?f", False), ("[^x]", False), ("e{2}", False), (r"\(?f", False), (r"\s+", False),
     ("(a|)", True), ("e|", True), ("e*", True), ("(?=e)", True), ("^", True), (r"\b", True), ("e{0,3}", True),
     ("(|a|b)" * 60 + "c", False), ("(" * 5000, True), (r"\p{L}", True), ("a{99999999999}", True),
     # The library's own reading: (a{2})?, and brackets in brackets.
     ("a{2}?", True), ("[[:alpha:]]*", True), (r"[\]*[a]]*", True), ("[]*[a]]*", True)],
)  # fmt: skip
def test_which_patterns_may_match_nothing(pattern: str, empty: bool) -> None:
    assert growth._may_be_empty(pattern) == empty


def test_it_is_looked_at_where_a_tokenizer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, _ = BOMBS["five rules"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(change), pad_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--model: the tokenizer of .* can't be used"):
        load_tokenizer(str(tmp_path), "--model")
    made = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tmp_path), image_processor=None)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: made)
    with pytest.raises(UserError, match=r"MODEL: the tokenizer of x can't be used"):
        read_processor("x", None)
