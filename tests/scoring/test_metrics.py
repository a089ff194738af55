"""Each metric against worked cases: from its paper, or worked out by hand through the benchmark's own script."""

from __future__ import annotations

import itertools
import random
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.commands.asking import Metric as CommandMetric
from basic_lite.errors import UserError
from basic_lite.scoring.metrics.anls import anls, levenshtein
from basic_lite.scoring.metrics.choice import choice, letter_of, options_of
from basic_lite.scoring.metrics.estimate import Mean, Share, estimated
from basic_lite.scoring.metrics.exact import exact
from basic_lite.scoring.metrics.named import METRICS, MetricName, metric_named
from basic_lite.scoring.metrics.relaxed import relaxed
from basic_lite.scoring.metrics.vqa import textvqa, vqa
from basic_lite.scoring.metrics.vqa_text import said
from basic_lite.scoring.metrics.yes_no import figures, says_yes, yes_no

QUESTION = "Which is it?\nContext: none\nA. a red circle\nB. a square\nC. circle\nAnswer with the letter."


def test_all_names_are_one() -> None:
    assert tuple(METRICS) == get_args(MetricName) == get_args(CommandMetric)
    assert all(name == metric.name for name, metric in METRICS.items())
    with pytest.raises(UserError, match=r"metric is 'anl', which is none of exact, .*; did you mean anls"):
        metric_named("anl")


@pytest.mark.parametrize(("text", "wanted"), [("It is  Red.", 1), ("it is rouge", 0), ("IT IS RED", 1), ("red", 0)])
def test_exact(text: str, wanted: float) -> None:
    assert exact(text, ["it is blue", "it is red"], "") == wanted


# What `processPunctuation` and `processDigitArticle` of vqaEval.py make of a text.
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The dog.", "dog"),
        ("a dog and the cat", "dog and cat"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("somebody'd", "somebodyd"),  # as the script's table has it
        ("black-white", "black white"),  # a sign between letters becomes a space
        ("black - white", "black white"),  # beside a space it goes
        ("1,000", "1000"),  # a comma in a number takes all signs
        ("1,000-2", "10002"),
        ("3.5", "3.5"),  # a full stop before a digit stays
        ("mr. smith", "mr smith"),
        ("yes!\n", "yes"),
        ("red, white", "red white"),
    ],
)
def test_vqa_normalisation(text: str, wanted: str) -> None:
    assert said(text) == wanted


@pytest.mark.parametrize(("same", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_is_the_mean_over_ten_left_out(same: int, wanted: float) -> None:
    answers = ["yes"] * same + [f"other {n}" for n in range(10 - same)]
    assert vqa("Yes.", answers, "") == pytest.approx(wanted)
    assert textvqa("Yes.", answers, "") == pytest.approx(wanted)


def test_vqa_equals_leaving_each_one_out() -> None:
    draw = random.Random(0)
    for _ in range(50):
        answers = [draw.choice("abcd") + "x" for _ in range(10)]
        by_hand = [min(1.0, sum(one == "ax" for m, one in enumerate(answers) if m != n) / 3) for n in range(10)]
        assert vqa("ax", answers, "") == pytest.approx(sum(by_hand) / 10)


# By hand through `evaluate` of vqaEval.py (a013f00), where the people's answers aren't all one text.
@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [
        ("none", ["none"] * 8 + ["0"] * 2, 1.0),  # both are 0
        ("0", ["none"] * 2 + ["some"] * 8, 0.6),
        ("don't know", ["dont know"] * 9 + ["no"], 1.0),
        ("The dog.", ["the dog"] * 3 + ["a cat"] * 7, 0.9),
        ("black-white", ["Black white"] * 2 + ["black-white"] + ["grey"] * 7, 0.9),
        ("two", ["2"] * 5 + ["three"] * 5, 1.0),
        ("a", ["the"] * 4 + ["x"] * 6, 1.0),  # nothing is left of either
    ],
)
def test_vqa_makes_both_sides_alike(text: str, answers: list[str], wanted: float) -> None:
    assert vqa(text, answers, "") == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "answer"), [("Yes", "yes"), ("Black.", "black"), ("don't know", "dont know"), ("the dog", "the dog")]
)
def test_vqa_makes_both_sides_alike_where_all_people_agree(text: str, answer: str) -> None:
    """As published scores do; vqaEval.py gives the first three 0."""
    assert vqa(text, [answer] * 10, "") == 1.0


def test_textvqa_splits_a_genitive() -> None:
    assert textvqa("Coca Cola's", ["coca cola 's"] * 10, "") == 1.0
    assert textvqa("the dog", ["the dog"] * 10, "") == 1.0


# Section 5.1 of ChartQA, and pix2struct's `relaxed_correctness`.
@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("105", "100", 1), ("105.1", "100", 0), ("95", "100", 1), ("-104", "-100", 1), ("14%", "14%", 1),
        ("0.14", "14%", 1), ("14", "14%", 0), ("Yes", "yes", 1),
        ("yes it is", "yes", 0), ("0", "0", 1), ("0.0", "0", 0),
        ("5,000", "5000", 0), ("nan", "5", 0), ("", "5", 0),
    ],
)  # fmt: skip
def test_relaxed(text: str, answer: str, wanted: float) -> None:
    assert relaxed(text, [answer], "") == wanted


@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [
        ("0.28", ["0.28"], 1.0),
        ("ITC  Limited ", ["itc limited"], 1 - 0 / 13),
        ("itc limitedd", ["itc limited"], 1 - 1 / 12),
        ("abcd", ["ab"], 0.5),  # at one half the script still counts it
        ("abcde", ["ab"], 0.0),
        ("pepsi", ["coke", "pepsy"], 1 - 1 / 5),
        ("", ["x"], 0.0),
        ("straße", ["strase"], 1 - 1 / 7),  # the script's lengths are those in capitals
        ("strase", ["straße"], 1 - 1 / 7),
    ],
)
def test_anls(text: str, answers: list[str], wanted: float) -> None:
    assert anls(text, answers, "") == pytest.approx(wanted)


def test_options_end_where_their_words_do() -> None:
    assert options_of("Which?\r\nA. a square\r\nB. a circle\r\n") == {"A": "a square", "B": "a circle"}
    assert options_of("Which? (A) a square\t(B) a circle \t") == {"A": "a square", "B": "a circle"}
    assert options_of("(A)  \t(B) \n") == {}
    start = time.process_time()
    for mark in ("A. x", "(A) x"):  # such a question took many seconds
        options_of(f"{mark}{' ' * 50_000}({mark}{' ' * 50_000}y")
    assert time.process_time() - start < 1


def by_table(one: str, other: str) -> int:
    """The edit distance as its definition says it, cell by cell."""
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, letter_of_other in enumerate(other, 1):
            changed = above[column - 1] + (letter != letter_of_other)
            line.append(min(changed, above[column] + 1, line[-1] + 1))
        above = line
    return above[-1]


def test_levenshtein() -> None:
    assert levenshtein("kitten", "sitting") == 3 and levenshtein("", "abc") == 3 and levenshtein("same", "same") == 0
    words = ["".join(word) for size in range(5) for word in itertools.product("ab", repeat=size)]
    assert all(levenshtein(one, other) == by_table(one, other) for one in words for other in words)


@given(one=st.text("abé ", max_size=150), other=st.text("abc ", max_size=150))
def test_levenshtein_is_as_defined(one: str, other: str) -> None:
    assert levenshtein(one, other) == by_table(one, other)


def test_long_answers_are_scored_at_once() -> None:
    """Two of 5,000 words took minutes."""
    one, other = ("".join(chr(97 + (n * n + n // step) % 26) for n in range(30_000)) for step in (7, 11))
    start = time.process_time()
    score = anls(one, [other, one + "x" * 3_000], "")
    assert score == pytest.approx(1 - 3_000 / 33_000) and time.process_time() - start < 20


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("b", None), ("B.", "B"), ("B. a square", "B"), ("The answer is B.", "B"),
        ("Answer: (C)", "C"), ("a square", "B"), ("A square.", "B"), ("It is a square", "B"), ("circle", "C"),
        ("a red circle", "A"), ("a circle and a square", None), ("F", None), ("", None), ("A big thing", None),
        ("I see a square " * 20, None), ("The answer is a square.", "B"), ("ANSWER: B", "B"),
        ("I can't answer a question", None),
    ],
)  # fmt: skip
def test_choice_letters(text: str, letter: str | None) -> None:
    assert letter_of(text, options_of(QUESTION)) == letter
    assert choice(text, ["C"], QUESTION) == float(letter == "C")


# By hand through `can_infer` of VLMEvalKit (2cf2a36c), which has the same result in each.
@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option B", "B"), ("B is correct", "B"), ("It's B", "B"), ("I think it is B.", "B"), ("**B**", "B"),
        ("[B]", "B"),
        ("The correct answer is **B**. Here's why: it is red and big", "B"), ("B because it is", "B"),
        ("Option A", "A"), ("A is correct", "A"), ("It's A", "A"), ("I think it is A.", "A"), ("**A**", "A"),
        ("[A]", "A"),
        (r"\boxed{C}", "C"), ("C or B", None), ("Not A but B", None), ("A and B", None), ("A big red thing runs", None),
        ("I choose B here as it is", None),  # more than three words behind it
        ("Cannot determine the answer, perhaps B", None), ("'B'", None), ("Option F", None),
    ],
)  # fmt: skip
def test_the_only_letter_among_the_words(text: str, letter: str | None) -> None:
    assert letter_of(text, options_of(QUESTION)) == letter


def test_a_letter_or_a_list_of_letters() -> None:
    options = {"A": "vitamin D", "B": "vitamin C", "C": "iron"}
    assert letter_of("Vitamin C", options) == letter_of("B. vitamin C", options) == "B"
    assert letter_of("B, because the fruit has a lot of it", options) == "B" and letter_of("B, C", options) is None
    # Options that are in the picture, not in the question.
    assert letter_of("Option D", {}) == letter_of("I think it is D", {}) == "D" and letter_of("I think so", {}) is None


def test_an_article_is_no_letter() -> None:
    options = {"A": "dog", "B": "cat", "C": "a bird"}
    assert letter_of("The answer is a cat.", options) == "B" and letter_of("Answer: a bird", options) == "C"
    assert letter_of("A cat.", options) == letter_of("It barks. A cat, then.", options) == "B"
    assert letter_of("A thing", options) is None and letter_of("It is A. A dog is there", options) == "A"


def test_a_right_answer_must_be_read() -> None:
    unread = METRICS["choice"].unread
    assert choice("B", ["b"], QUESTION) == choice("B", ["(b)"], "?") == 1.0 and choice("A", ["b"], QUESTION) == 0.0
    assert choice("b", ["a"], "Which?\nA. b\nB. a") == 0.0  # a text comes before a letter: "a" is option B
    assert [unread(text, QUESTION) for text in ("b", "A square.", "The answer is B.")] == [""] * 3
    assert unread("cat", QUESTION) == "names none of the options A, B, C"
    assert unread("cat", "Which?") == "is no letter, and the question lists no options" and unread("d", "Which?") == ""
    unread = METRICS["yes_no"].unread
    assert yes_no("no", ["NO"], "") == yes_no("Yes", ["YES!"], "") == 1.0 and yes_no("yes", ["No!"], "") == 0.0
    assert [unread(text, "") for text in ("NO", "yes", "There is not.")] == [""] * 3
    assert unread("blue", "") == unread("", "") == "says neither yes nor no"
    assert figures([("no", "NO")]) == figures([("no", "no")])
    assert METRICS["exact"].unread("blue", "") == ""


def test_options_as_lines_or_in_one() -> None:
    assert options_of(QUESTION) == {"A": "a red circle", "B": "a square", "C": "circle"}
    assert options_of("Context: N/A\nQuestion: which?\nOptions: (A) chiasmus (B) apostrophe\n") == {
        "A": "chiasmus",
        "B": "apostrophe",
    }
    # A hint is no list of options, whatever its lines begin with.
    hint = "A: hello\nB: hi\nC: bye\nQ: who?\n"
    assert options_of(f"{hint}Which?\nA. x\nB. y\nQ. z") == {"A": "x", "B": "y"}
    assert options_of(f"{hint}Which?\n(A) x (B) y") == options_of("Which?\n(A) x\n(B) y") == {"A": "x", "B": "y"}
    assert options_of("Q: hi\nB. no") == options_of("A. one") == {}
    assert options_of("A. two\nlines\nB. one\nA: said\nC. z") == {"A": "two", "B": "one"}
    assert options_of("no options") == {} and letter_of("D", {}) == "D"
    assert choice("B", ["The answer is B."], "(A) one (B) two") == 1.0


# POPE's `evaluate.py`: only the first sentence; "No", "no" or "not" is no; all else is yes.
@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True), ("No", False), ("no, there is none", False), ("There is not.", False), ("Yes. No doubt.", True),
        ("NO", True), ("Nothing", True), ("", True), ("Well,no", True),
    ],
)  # fmt: skip
def test_yes_no(text: str, yes: bool) -> None:
    assert (
        says_yes(text) is yes and yes_no(text, ["yes"], "") == float(yes) and yes_no(text, ["no"], "") == float(not yes)
    )


def test_yes_no_figures() -> None:
    pairs = [("yes", "yes")] * 40 + [("yes", "no")] * 10 + [("no", "yes")] * 20 + [("no", "no")] * 30
    found = figures(pairs)
    assert found["precision"] == Share(40, 50) and found["recall"] == Share(40, 60)
    assert found["yes ratio"] == Share(50, 100)
    f1 = found["F1"]
    assert f1.share == pytest.approx(2 * 0.8 * (2 / 3) / (0.8 + 2 / 3)) and f1.interval[0] < f1.share < f1.interval[1]
    # The delta method's standard error of F1 on these counts is .0479.
    assert f1.interval == pytest.approx((f1.share - 1.96 * 0.0479, f1.share + 1.96 * 0.0479), abs=0.02)
    assert figures([("no", "no")]).keys() == {"yes ratio"}  # nothing says yes, and nothing should


def test_an_estimate_is_a_share_or_a_mean() -> None:
    assert estimated([1.0, 0.0, 1.0]) == Share(2, 3)
    partial = estimated([0.3] * 50 + [0.9] * 50)
    assert isinstance(partial, Mean) and partial.share == pytest.approx(0.6) and partial.n == 100
    # The standard error of the mean is .03.
    assert partial.interval == pytest.approx((0.6 - 1.96 * 0.03, 0.6 + 1.96 * 0.03), abs=0.006)
