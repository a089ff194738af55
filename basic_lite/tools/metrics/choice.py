"""Multiple choice: which option an answer names."""

import re
from collections.abc import Mapping, Sequence

_OPTION_LINE = re.compile(r"^\(?([A-Z])[.):] *(\S.*?) *$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"\(([A-Z])\) ([^()]*[^()\s])")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:[.:,]|\))(?=\s|$)")
_LETTER_SAID = re.compile(r"\banswer(?: is)?:? \(?([A-Z])\b(?!')", re.IGNORECASE)


def choice(prediction: str, answers: Sequence[str], question: str) -> float:
    """1 if the answer names the right option, else 0.

    The options are those that the question lists, as lines "A. text" or in one line "(A) text (B) text". An answer
    names one by its letter ("B", "(B)", "B. text", "The answer is B.", as in LLaVA's `eval_science_qa.py`), or by the
    text of one option and no other, as in `can_infer` of VLMEvalKit. MMBench's authors ask ChatGPT what any other
    answer means; here it is wrong.
    """
    options = options_of(question)
    right = letter_of(answers[0], options)
    return float(right is not None and letter_of(prediction, options) == right)


def options_of(question: str) -> dict[str, str]:
    """Letter → text of the options that a question lists."""
    # One line "(A) this (B) that" is an option line as well, of one option.
    return max((dict(form.findall(question)) for form in (_OPTION_LINE, _OPTION_INLINE)), key=len)


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
