"""Where the argument MODEL of a command leads, told by names alone; nothing heavy is imported here."""

import os
from pathlib import Path

from basic_lite.console import command_line
from basic_lite.errors import UserError
from basic_lite.tools.chat.words import PICTURE_ENDING
from basic_lite.training.bundle_files import find_bundle, meant_run
from basic_lite.training.places import MANIFEST, holds_bundle

_MODELS = "give a run folder (runs/NAME), a bundle, an exported folder, or the name of a model on the hub (OWNER/NAME)"


def holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", MANIFEST))


def is_run(model: str) -> bool:
    """Whether it is a run or bundle of ours; else it is a folder with a config.json, or may be a name on the hub.

    Raises:
        UserError: it can be neither.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() and not (folder / MANIFEST).is_file():
        return False
    if not folder.exists():
        if may_be_on_the_hub(model):
            return False
        raise UserError(f"there is no folder {model}; {meant_run(folder, fits=can_speak) or _MODELS}")
    find_bundle(folder, "MODEL")
    return True


def can_speak(folder: Path) -> bool:
    return holds_model(folder) or holds_bundle(folder)


def may_be_on_the_hub(name: str) -> bool:
    """Whether a name could be a model's on the hub: it is written so, and there is no such folder."""
    if Path(name).expanduser().exists():
        return False
    return name.count("/") == 1 and not name.startswith((".", "~", "/", "runs/")) and not name.endswith("/")


def look_at_model(model: str, command: str) -> None:
    """Refuse a model that can't be there, in a moment; ``require_model`` looks at all else.

    Args:
        command: that has the argument, for the message.

    Raises:
        UserError: it is a picture, or there is no such folder, and it can be no name on the hub either.
    """
    place = Path(model).expanduser()
    if PICTURE_ENDING.search(model) and not os.path.isdir(place):
        raise picture_for_model(model, command)
    # GGUF files have words of their own.
    if not os.path.exists(place) and place.suffix.lower() != ".gguf":
        is_run(model)


def picture_for_model(model: str, command: str) -> UserError:
    """What to say of a picture where the model belongs."""
    return UserError(f"{model} is a picture; give the model first: basic-lite {command} MODEL {command_line([model])}")
