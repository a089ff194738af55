"""What the argument MODEL of a command names: a run of ours, or a model that transformers opens."""

from pathlib import Path

from basic_lite.console import command_line
from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import is_picture
from basic_lite.tools.model_place import can_speak, holds_model, picture_for_model
from basic_lite.training.bundle_files import meant_run


def require_model(model: str, command: str) -> None:
    """Refuse the names of files: a model is a folder.

    Args:
        command: that has the argument, for the message.

    Raises:
        UserError: it is a file, or a folder of pictures.
    """
    place = Path(model).expanduser()
    if place.is_dir():
        _require_no_pictures(place, model, command)
        return
    if is_picture(model):
        raise picture_for_model(model, command)
    if place.suffix.lower() == ".gguf":
        raise UserError(
            f"{model}: GGUF files are for llama.cpp and Ollama; give the run, or the folder that it was exported to"
        )
    if place.is_file():
        holders = (folder for folder in list(place.parents)[:3] if holds_model(folder))
        folder = next(holders, "a run folder (runs/NAME), a bundle, or an exported folder")
        raise UserError(f"{model} is a file, and a model is a folder; give {folder}")


def _require_no_pictures(place: Path, model: str, command: str) -> None:
    if can_speak(place):
        return
    if picture := next((path for path in sorted(place.iterdir()) if is_picture(path.name)), None):
        meant = meant_run(place)
        order = "Give the model first" if meant else "give the model first"
        raise UserError(
            f"{model} is a folder of pictures; {f'{meant} ' if meant else ''}{order}: basic-lite {command} MODEL "
            f"{command_line([str(Path(model) / picture.name)])}"
        )
