"""Multiple choice: which option an answer names."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from string import ascii_uppercase

# Without a part that ends where spaces do: a search that may end in many places takes seconds on 30,000 of them.
_OPTION_LINE = re.compile(r"^\(?([A-Z])[.):] *(\S.*)$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"\(([A-Z])\) ([^()]+)")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:[.:]|\))(?=\s|$)")
_LETTER_COMMA = re.compile(r"([A-Z]),(?=\s)")
# The letter alone must be a capital: "the answer is a cat" names no option A.
_LETTER_SAID = re.compile(r"(?i:\banswer(?: is)?:?) [(*]*([A-Z])\b(?!')")
# Signs that VLMEvalKit takes as spaces.
_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# The only letter among the words names an option if no more words than these follow it.
_MOST_AFTER = 3
# Where a sentence begins, "A" before a word is an article.
_ARTICLE = re.compile(r"(?:^|(?<=[.!?]\s))A (?=[a-z])(?!(?:is|because|since|as|and|or)\b)")
# VLMEvalKit's: who says this names no option.
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def choice(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if the answer names the right option, else 0.

    The options are those that the question lists, as lines "A. text" or in one line "(A) text (B) text". What an answer
    names, ``letter_of`` says. MMBench's authors ask ChatGPT what any other answer means; here it is wrong.
    """
    options = options_of(question)
    right = _right_letter(answers[0], options)
    return float(right is not None and letter_of(prediction, options) == right)


def choice_unread(answer: str, question: str) -> str:
    """Why a right answer can't be read; empty: it can."""
    options = options_of(question)
    if _right_letter(answer, options):
        return ""
    if options:
        return f"names none of the options {', '.join(options)}"
    return "is no letter, and the question lists no options"


def _right_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that a right answer names, where "b" is B as well."""
    capital = answer.strip().upper()
    return letter_of(answer, options) or (letter_of(capital, options) if _LETTER.fullmatch(capital) else None)


def options_of(question: str) -> dict[str, str]:
    """Letter → text of the options that a question lists: the last two or more that go A, B, C and so on.

    What comes before them, such as a talk in a hint ("A: hello"), is none.
    """
    marked = ([one for one in form.finditer(question) if one[2].strip()] for form in (_OPTION_LINE, _OPTION_INLINE))
    lists = [_last_list(one) for one in marked]
    # "(A) this\n(B) that" is found in both forms, and lines know where an option ends.
    last = max(lists, key=lambda found: found[-1].start() if found else -1)
    return {one[1]: one[2].rstrip() for one in last}


def _last_list(marked: Sequence[re.Match[str]]) -> Sequence[re.Match[str]]:
    for start in reversed(range(len(marked))):
        in_order = zip(marked[start:], ascii_uppercase, strict=False)
        found = [one for one, _ in takewhile(lambda pair: pair[0][1] == pair[1], in_order)]
        if len(found) > 1:
            return found
    return ()


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names; None: it can't be told. Without options any letter is one.

    As in `can_infer` of VLMEvalKit (`matching_util.py`, commit 2cf2a36c), whose last step, to ask ChatGPT, is left out:
    the one letter among the words, near their end ("It's B", "**B**"); "the answer is B"; the text of one option and no
    other. Four things are ours, for answers that it reads wrongly or leaves to ChatGPT:

    - An answer that is one option's text, word for word, names that option.
    - The letter may stand first with a sign behind it, whatever follows ("B. vitamin C", as in LLaVA's
      `eval_science_qa.py`).
    - The capital A of "A cat" is an article. There it is one only in answers of four words or more and with VERBOSE
      set, in lmms-eval's copy in all of these.
    - A letter is a capital: "the answer is a cat" names no option A.
    """
    answer = answer.strip()
    exactly = [letter for letter, text in options.items() if text.lower() == answer.lower().rstrip(".")]
    alone = _LETTER.fullmatch(answer)
    if alone and (not options or alone[1] in options):
        return alone[1]
    if len(exactly) == 1:
        return exactly[0]
    if any(refusal in answer for refusal in _REFUSALS):
        return None
    return _letter_in(answer, options) or _text_in(answer.lower(), options)


def _letter_in(answer: str, options: Mapping[str, str]) -> str | None:
    """The option whose letter is in an answer of several words."""
    words = _ARTICLE.sub("", answer).translate(_SIGNS).split()
    # Without options "I" is the pronoun.
    found = {word for word in words if word in (options or set(ascii_uppercase) - {"I"})}
    named = _LETTER_SAID.search(answer) or _LETTER_FIRST.match(answer)
    if len(found) == 1:
        (letter,) = found
        if words.index(letter) >= len(words) - 1 - _MOST_AFTER:
            return letter
        named = named or _LETTER_COMMA.match(answer)  # "B, because it's red", but not "B, C"
    return named[1] if named and (not options or named[1] in options) else None


def _text_in(plain: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text is in an answer in lower case that isn't much longer than all of them."""
    if len(plain) > 2 * sum(map(len, options.values())):
        return None
    within = [letter for letter, text in options.items() if text.lower() in plain]
    return within[0] if len(within) == 1 else None
