"""Multiple choice: which option an answer names."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from string import ascii_uppercase

_OPTION_LINE = re.compile(r"^\(?([A-Z])[.):] *(\S.*?) *$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"\(([A-Z])\) ([^()]*[^()\s])")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:[.:,]|\))(?=\s|$)")
# The letter alone must be a capital: "the answer is a cat" names no option A.
_LETTER_SAID = re.compile(r"(?i:\banswer(?: is)?:?) \(?([A-Z])\b(?!')")


def choice(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if the answer names the right option, else 0.

    The options are those that the question lists, as lines "A. text" or in one line "(A) text (B) text". An answer
    names one by its letter ("B", "(B)", "B. text", "The answer is B.", as in LLaVA's `eval_science_qa.py`), or by the
    text of one option and no other, as in `can_infer` of VLMEvalKit. MMBench's authors ask ChatGPT what any other
    answer means; here it is wrong.
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
    lists = [_last_list(list(form.finditer(question))) for form in (_OPTION_LINE, _OPTION_INLINE)]
    # "(A) this\n(B) that" is found in both forms, and lines know where an option ends.
    last = max(lists, key=lambda found: found[-1].start() if found else -1)
    return {one[1]: one[2] for one in last}


def _last_list(marked: Sequence[re.Match[str]]) -> Sequence[re.Match[str]]:
    for start in reversed(range(len(marked))):
        in_order = zip(marked[start:], ascii_uppercase, strict=False)
        found = [one for one, _ in takewhile(lambda pair: pair[0][1] == pair[1], in_order)]
        if len(found) > 1:
            return found
    return ()


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names; None: it can't be told. Without options any letter is one."""
    answer = answer.strip()
    named = _LETTER.fullmatch(answer) or _LETTER_FIRST.match(answer) or _LETTER_SAID.search(answer)
    if named and (not options or named[1].upper() in options):
        return named[1].upper()
    plain = answer.lower()
    if len(plain) > 2 * sum(map(len, options.values())):
        return None
    exactly = [letter for letter, text in options.items() if text.lower() == plain.rstrip(".")]
    within = exactly or [letter for letter, text in options.items() if text.lower() in plain]
    return within[0] if len(within) == 1 else None
