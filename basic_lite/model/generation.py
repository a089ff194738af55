"""How a model's answers are made is ours to say: of a generation_config.json only the end tokens are taken."""

from typing import Any

from transformers import GenerationConfig

from basic_lite.errors import UserError

_FILE = "generation_config.json"


def require_own_generation(model: Any, name: str, key: str) -> None:
    """Give a loaded model settings that change no answer: the likeliest token each time, until an end token.

    A checkpoint's own may ask for beams, penalties, banned or preferred words, a time limit, a watermark, or another
    form of the output. Evaluation compares models, so it can't have them, and a stranger could set any.

    Args:
        model: as transformers has loaded it.

    Raises:
        UserError: what it says of its end tokens isn't ids of its own.
    """
    theirs = getattr(model, "generation_config", None)
    if theirs is None:  # it is no language model
        return
    ends = theirs.eos_token_id
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    rows = int(model.get_input_embeddings().weight.shape[0])
    odd = [one for one in listed if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < rows]
    if odd:
        raise UserError(
            f"{key}: the {_FILE} of {name} has {odd[0]!r:.80} for an end token (eos_token_id), and its tokens are "
            f"whole numbers from 0 to {rows - 1:,}; fetch it again, or correct it there"
        )
    model.generation_config = GenerationConfig(eos_token_id=listed or None)
