"""The choice or the path that someone meant: a usual other name of it, or the one that is spelled most like it."""

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

# What people call these. Spelling alone would take `gpu` for `cpu`.
_OTHER_NAMES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "full": "float32",
    "float": "float32",
    "4bit": "nf4",
    "4-bit": "nf4",
    "vicuna": "v1",
}


def meant(word: str, choices: Iterable[str]) -> str | None:
    """The choice that ``word`` was meant for; None where none is near."""
    choices, word = list(choices), word.strip().lower()
    if other := _OTHER_NAMES.get(word):
        return other if other in choices else None
    return next(iter(get_close_matches(word, choices, 1, 0.5)), None)


def meant_beside(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """`did you mean PATH?` for a path where nothing is: a file or one of its folders is spelled a little otherwise.

    Empty where no name is near.

    Args:
        fits: whether what is at a path comes into question.
    """
    # The outermost folder that isn't there has the wrong name.
    wrong = next((one for one in reversed([path, *path.parents]) if not os.path.exists(one)), path)
    rest = path.relative_to(wrong)
    try:
        beside = [one.name for one in wrong.parent.iterdir() if fits(one / rest)]
    except OSError:
        return ""
    names = {name.lower(): name for name in beside if not name.startswith(".")}
    near = get_close_matches(wrong.name.lower(), names, 1)
    return f"did you mean {(wrong.parent / names[near[0]] / rest).as_posix()}?" if near else ""
