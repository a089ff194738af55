"""What the argument MODEL of a command names: a run of ours, or a model that transformers opens."""

from pathlib import Path

from basic_lite.console import command_line
from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import is_picture
from basic_lite.training.bundle_files import find_bundle, meant_run
from basic_lite.training.places import MANIFEST, holds_bundle

_MODELS = "give a run folder (runs/NAME), a bundle, an exported folder, or the name of a model on the hub (OWNER/NAME)"


def require_model(model: str, command: str) -> None:
    """Refuse the names of files: a model is a folder.

    Args:
        command: that has the argument, for the message.
    """
    place = Path(model).expanduser()
    if place.is_dir():
        _require_no_pictures(place, model, command)
        return
    if is_picture(model):
        raise UserError(
            f"{model} is a picture; the model goes first: basic-lite {command} MODEL {command_line([model])}"
        )
    if place.suffix.lower() == ".gguf":
        raise UserError(
            f"{model}: GGUF files are for llama.cpp and Ollama; give the run, or the folder that it was exported to"
        )
    if place.is_file():
        holders = (folder for folder in list(place.parents)[:3] if _holds_model(folder))
        folder = next(holders, "a run folder (runs/NAME), a bundle, or an exported folder")
        raise UserError(f"{model} is a file, and a model is a folder; give {folder}")


def _require_no_pictures(place: Path, model: str, command: str) -> None:
    if _can_speak(place):
        return
    if picture := next((path for path in sorted(place.iterdir()) if is_picture(path.name)), None):
        raise UserError(
            f"{model} is a folder of pictures; the model goes first: basic-lite {command} MODEL "
            f"{command_line([str(Path(model) / picture.name)])}"
        )


def _holds_model(folder: Path) -> bool:
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
        raise UserError(f"there is no folder {model}; {meant_run(folder, fits=_can_speak) or _MODELS}")
    find_bundle(folder, "MODEL")
    return True


def _can_speak(folder: Path) -> bool:
    return _holds_model(folder) or holds_bundle(folder)


def may_be_on_the_hub(name: str) -> bool:
    """Whether a name could be a model's on the hub: it is written so, and there is no such folder."""
    if Path(name).expanduser().exists():
        return False
    return name.count("/") == 1 and not name.startswith((".", "~", "/", "runs/")) and not name.endswith("/")
