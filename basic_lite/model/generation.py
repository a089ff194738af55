"""How a model's answers are made is ours to say: of a generation_config.json only the marks of a text are taken."""

from typing import Any

from transformers import GenerationConfig

from basic_lite.errors import UserError

_FILE = "generation_config.json"
# What a text begins and ends with, and for models of two halves what the second begins with.
_MARKS = ("eos_token_id", "bos_token_id", "decoder_start_token_id")


def require_own_generation(model: Any, name: str, key: str) -> None:
    """Give a loaded model settings that change no answer: the likeliest token each time, until an end token.

    A checkpoint's own may ask for beams, penalties, banned or preferred words, a time limit, a watermark, or another
    form of the output. Evaluation compares models, so it can't have them, and a stranger could set any.

    Args:
        model: as transformers has loaded it.

    Raises:
        UserError: a mark of its texts isn't one of its tokens.
    """
    theirs = getattr(model, "generation_config", None)
    if theirs is None:  # it is no language model
        return
    rows = int(model.get_input_embeddings().weight.shape[0])
    taken = {}
    for mark in _MARKS:
        value = getattr(theirs, mark)
        ids = value if isinstance(value, list) and mark == "eos_token_id" else [] if value is None else [value]
        if odd := [one for one in ids if not _is_token(one, rows)]:
            raise UserError(
                f"{key}: the {_FILE} of {name} has {odd[0]!r:.80} for a token ({mark}), and its tokens are whole "
                f"numbers from 0 to {rows - 1:,}; fetch it again, or correct it there"
            )
        if ids:
            taken[mark] = ids if mark == "eos_token_id" else ids[0]
    # Padding is masked, so any token does.
    pads = [theirs.pad_token_id, *taken.get("eos_token_id", [])]
    pad = next((one for one in pads if _is_token(one, rows)), None)
    model.generation_config = GenerationConfig(pad_token_id=pad, **taken)


def _is_token(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows
