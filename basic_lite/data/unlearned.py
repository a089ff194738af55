"""Marks on an answer that say it isn't to be learned, as OpenAI, Axolotl and ms-swift write them."""

from collections.abc import Mapping
from typing import Any

from basic_lite.data.pictures import is_filled
from basic_lite.data.problems import BadRecord, shorten

# Each says with 0 or false that the answer isn't learned.
MARKS = ("weight", "loss_weight", "loss_scale", "loss_mask", "loss", "train", "training", "trainable")
# Axolotl's: which characters of an answer are learned.
_DETAILS = ("train_detail", "training_detail")
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_learned(turn: Mapping[str, Any], number: int) -> bool:
    """Whether an answer is to be learned, by the marks on its turn; without any it is.

    Args:
        number: the turn's, for messages.

    Raises:
        BadRecord: a mark is neither yes nor no, or is for a part of the answer.
    """
    if detail := next((key for key in _DETAILS if is_filled(turn.get(key))), None):
        raise BadRecord(
            f"turn {number} marks parts of its answer ({detail!r}), and an answer is learned as a whole or not at all",
            f"remove {detail!r}, or mark the whole answer with train: false",
        )
    return all(_yes(turn[key], key, number) for key in MARKS if is_filled(turn.get(key)))


def _yes(value: Any, key: str, number: int) -> bool:
    if isinstance(value, str):
        value = _YES_NO.get(value.strip().lower(), value)
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if key == "loss" and isinstance(value, float):
        return True  # what a model had on it
    raise BadRecord(
        f"turn {number} has {key!r} {shorten(value)}, and an answer is learned as a whole or not at all",
        f"write 1 or 0, or rename {key!r} if it means something else",
    )
