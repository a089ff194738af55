"""What ``basic-lite chat`` does: find the model, then one answer, a conversation in the terminal, or a page."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from basic_lite.console import command_line, note, quiet_libraries
from basic_lite.data.turns import clean
from basic_lite.errors import UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import pick_device
from basic_lite.tools.chat.arguments import is_picture, pictures_and_question
from basic_lite.tools.chat.dialogue import Dialogue
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.chat.speaker import Manner, Speaker
from basic_lite.tools.chat.terminal import converse
from basic_lite.training.answer import MAX_NEW_TOKENS
from basic_lite.training.bundle_files import find_bundle, meant_run
from basic_lite.training.places import MANIFEST, holds_bundle

# Below it, a logit divided by it may be no number any more.
_LEAST_TEMPERATURE = 0.001
_MODELS = "give a run folder (runs/NAME), a bundle, an exported folder, or the name of a model on the hub (OWNER/NAME)"


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
    _check_model(model)
    if web:
        _check_web(words, question)
    if 0 < temperature < _LEAST_TEMPERATURE:
        raise UserError(
            f"--temperature {temperature:g} is too low to draw with; give 0, or {_LEAST_TEMPERATURE} or more"
        )
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
        raise UserError('--web needs gradio, which is not installed: pip install -e ".[web]"')


def _check_model(model: str) -> None:
    """Refuse the names of files: a model is a folder."""
    place = Path(model).expanduser()
    if place.is_dir():
        return
    if is_picture(model):
        raise UserError(f"{model} is a picture; the model goes first: basic-lite chat MODEL {command_line([model])}")
    if place.suffix.lower() == ".gguf":
        raise UserError(
            f"{model}: GGUF files are for llama.cpp and Ollama; give the run, or the folder that it was exported to"
        )
    if place.is_file():
        holders = (folder for folder in list(place.parents)[:3] if _holds_model(folder))
        folder = next(holders, "a run folder (runs/NAME), a bundle, or an exported folder")
        raise UserError(f"{model} is a file, and a model is a folder; give {folder}")


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", MANIFEST))


def find_speaker(model: str, device: str, dtype: str) -> Speaker:
    """The model of a run, else one that transformers opens.

    Raises:
        UserError: it is neither, or can't be loaded.
    """
    folder, where = Path(model).expanduser(), pick_device(device, "--device")
    tell_device(where, device, note)
    if (folder / "config.json").is_file() and not (folder / MANIFEST).is_file():
        return FolderSpeaker(str(folder), where, dtype)
    if not folder.exists():
        if _may_be_on_the_hub(model):
            return FolderSpeaker(model, where, dtype)
        raise UserError(f"there is no folder {model}; {meant_run(folder, fits=_can_speak) or _MODELS}")
    find_bundle(folder, "MODEL")
    if dtype != "auto":
        raise UserError(f"--dtype is for exported and other models; {model} is a run, and its recipe has the types")
    return RunSpeaker(folder, where)


def _can_speak(folder: Path) -> bool:
    return _holds_model(folder) or holds_bundle(folder)


def _may_be_on_the_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/", "runs/")) and not name.endswith("/")
