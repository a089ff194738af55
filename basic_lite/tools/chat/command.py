"""What ``basic-lite chat`` does: find the model, then one answer, a conversation in the terminal, or a page."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from basic_lite.console import note, quiet_libraries
from basic_lite.data.turns import clean
from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import pictures_and_question
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS, Dialogue
from basic_lite.tools.chat.speaker import Manner, Speaker, require_temperature
from basic_lite.tools.chat.terminal import converse
from basic_lite.tools.model_argument import require_model
from basic_lite.tools.model_place import is_run


def chat(
    model: str,
    words: Sequence[str],
    *,
    question: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    web: bool = False,
    port: int | None = None,
    browser: bool = True,
) -> None:
    """Talk with a model. Answers go to stdout, all else to stderr.

    Args:
        model: run folder, bundle, folder that transformers reads, or hub name.
        words: pictures, then perhaps a question.
        dtype: of a model that isn't a run.
        port, browser: of the page (``web``).

    Raises:
        UserError: no such model, a picture that can't be read, or gradio is missing.
    """
    quiet_libraries()
    require_model(model, "chat")
    if web:
        _check_web(words, question)
    require_temperature(temperature, "--temperature")
    manner = Manner(max_new_tokens, temperature)
    pictures, question = pictures_and_question(words, question)
    question = None if question is None else clean(question)
    speaker = find_speaker(model, device, dtype)
    if web:
        from basic_lite.tools.chat.web import serve

        serve(speaker, manner, port=port, browser=browser)
    else:
        converse(speaker, Dialogue(pictures=pictures), manner, question)


def _check_web(words: Sequence[str], question: str | None) -> None:
    if words or question is not None:
        raise UserError("--web takes pictures and questions on its page; leave them out of the command")
    if importlib.util.find_spec("gradio") is None:
        raise UserError('--web needs gradio, which is not installed; install it: pip install -e ".[web]"')


def find_speaker(model: str, device: str, dtype: str) -> Speaker:
    """The model of a run, else one that transformers opens.

    Raises:
        UserError: it is neither, or can't be loaded.
    """
    # Not above: what is wrong with the words of the command is told before the seconds that these take.
    from basic_lite.model.device import tell_device, warn_of_slow_types
    from basic_lite.model.load import pick_device, pick_dtype
    from basic_lite.tools.chat.of_folder import FolderSpeaker
    from basic_lite.tools.chat.of_run import RunSpeaker

    where = pick_device(device, "--device")
    tell_device(where, device, note)
    folder = Path(model).expanduser()
    if not is_run(model):
        warn_of_slow_types(where, {"--dtype float32": pick_dtype(dtype, where)}, note)
        return FolderSpeaker(str(folder) if folder.exists() else model, where, dtype)
    if dtype != "auto":
        raise UserError(f"--dtype is for exported and other models; {model} is a run, and its recipe has the types")
    return RunSpeaker(folder, where)
