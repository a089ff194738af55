"""What texts hold, against counting by hand."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from basic_lite.data.record import Record, Turn
from basic_lite.scoring.metrics.exact import normalise
from basic_lite.tools.check.texts import COMMON, USUAL_TOKENS, Texts, is_repetitive, script_of


def record(*pairs: tuple[str, str]) -> Record:
    turns = [turn for asked, said in pairs for turn in (Turn("human", asked), Turn("gpt", said))]
    return Record(1, "", "x", (), tuple(turns))


def texts_of(records: list[Record], **keys: object) -> Texts:
    texts = Texts(**keys)  # type: ignore[arg-type]
    for index, one in enumerate(records):
        texts.add(index, one)
    return texts


def test_the_prior_is_that_of_counting() -> None:
    chance = random.Random(0)
    records = [
        record(*[(f"<image>\nQ{chance.choice('aabbc')}?", chance.choice(["Yes.", "yes", "no", "3"])) for _ in range(3)])
        for _ in range(60)
    ] + [record(("only once?", "so")), record(*[("four times?", "yes")] * (COMMON - 1))]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in records:
        for asked, said in zip(one.turns[::2], one.turns[1::2], strict=True):
            counts[normalise(asked.text.replace("<image>", ""))][normalise(said.text)] += 1
    common = [one for one in counts.values() if one.total() >= COMMON]
    prior = texts_of(records).prior()
    assert prior.pairs == sum(one.total() for one in common) == 180
    assert prior.right == sum(one.most_common(1)[0][1] for one in common)
    shares = sorted((one.most_common(1)[0][1] / one.total() for one in common), reverse=True)
    assert [share for _, _, share in prior.worst] == pytest.approx(shares)
    assert texts_of([]).prior().pairs == 0


def test_blank_endless_and_marked() -> None:
    records = [
        record(("a", "b")),
        record(("a", "b"), ("c", " \n")),
        record(("a", "and so on, " * 60)),
        record(("a </s> b", "c")),
        record(("a", "so <|im_end|> and <|eot_id|>, <|eot_id|>")),
    ]
    texts = texts_of(records)
    assert (texts.blank.places, texts.repeating.places, texts.with_token.places) == ([1], [2], [3, 4])
    assert texts.tokens == {"</s>": 1, "<|im_end|>": 1, "<|eot_id|>": 2}
    assert texts_of(records, special=["so on"]).with_token.places == [2, 3, 4]


def test_a_picture_belongs_into_a_question_alone() -> None:
    """<image> there stands for a picture; in an answer, or what the system says, it is only letters."""
    system = Record(1, "", "x", (), (Turn("system", "look at <image>"), Turn("human", "a"), Turn("gpt", "b")))
    records = [record(("<image>\nwhat?", "a cat")), record(("what?", "in the <image> is a cat")), system]
    texts = texts_of(records, special=["<image>"])
    assert texts.with_token.places == [1, 2] and texts.tokens == {"<image>": 2}


@pytest.mark.parametrize("token", USUAL_TOKENS)
def test_marks_of_other_models_are_known(token: str) -> None:
    """Where the tokenizer is another one's too: data is made with many models."""
    for one in (record((f"a {token} b", "c")), record(("a", f"b{token}"))):
        assert texts_of([one], special=["<own>"]).tokens == {token: 1}


def test_what_repeats_and_what_does_not() -> None:
    chance = random.Random(1)
    words = [f"word{n}" for n in range(60)]
    assert is_repetitive("a cat sits here. " * 40) and not is_repetitive("a cat sits here. " * 10)
    assert not is_repetitive(" ".join(chance.choices(words, k=400)))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a cat", "Latin"), ("élève où", "Latin"), ("кошка on the mat кошка", "Cyrillic"), ("猫がいる猫猫猫猫", "CJK"),
        ("ねこがいる", "Hiragana"), ("고양이", "Hangul"), ("قطة", "Arabic"), ("γάτα", "Greek"),
        ("12 + 3 = 15!", "none"), ("", "none"),
    ],
)  # fmt: skip
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script
