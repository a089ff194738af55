"""The text that VQA accuracy compares: punctuation, number words, articles and contractions made alike.

It follows `vqaEval.py` of GT-Vision-Lab/VQA (commit a013f00), with what is odd in it.
"""

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# A full stop that no digit follows. The script's other condition never applies.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the script gives re.UNICODE, which is 32, as the count
_ARTICLES = {"a", "an", "the"}
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(_COUNTED.split())
}  # fmt: skip
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


# What people write → the contraction. Each lacks one apostrophe; the last is the script's, the wrong way round.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}


def without_punctuation(text: str) -> str:
    """A sign becomes a space; nothing, where the text has it beside a space, or has a number with a comma."""
    out = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside_space or _NUMBER_WITH_COMMA.search(text) else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def said(text: str) -> str:
    """An answer, a model's or a person's, as the script compares it."""
    return plain_words(without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def textvqa_text(text: str) -> str:
    """An answer as TextVQA's evaluator (`EvalAIAnswerProcessor` of facebookresearch/pythia) compares it."""
    return said(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())
